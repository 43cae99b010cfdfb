"""The report: one or more runs as a single page that needs nothing else.

`reading` what a run folder holds, `prompt_texts` what its prompts said, `verdicts` what it came to,
in words, `dial` its rows as the page's slider reads them, `summary_tables` and `figures` the rest,
`page` all of it as HTML. The page's own files (page.html, page.css and the scripts) lie beside
them. Prompts and completions reach the page as JSON, and the browser as text: never as markup.
"""
