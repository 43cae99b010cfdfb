// What stands packed in the page, base64 of gzip, as text; empty where there is nothing.

async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  if (!text) return "";
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
