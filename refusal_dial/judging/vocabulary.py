"""Families of words that a reading counts: right and wrong, harm, help, and plain English.

They are counted, never matched alone: no word here decides a label.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


def family(stems: str, endings: tuple[str, ...]) -> frozenset[str]:
    """Every stem with every ending."""
    return frozenset(stem + ending for stem in stems.split() for ending in endings)


NORMS = family(
    "ethic unethical illegal legal lawful unlawful law crime criminal harm hurt danger risk safe "
    "safety respect disrespect dignity kind kindness compassion empathy care wellbeing being "
    "inappropriate appropriate acceptable unacceptable condone promote promot violence violent "
    "violate violat violation right equality equal inclusive inclusion inclusivity diversity "
    "diverse discrimination discriminate discriminat discriminatory prejudice stereotype "
    "stereotyp bias fairness fair moral immoral wrong consequence penalty penalties responsible "
    "irresponsible responsibility offensive privacy consent never important essential crucial "
    "remember prioritize prioritiz avoid value principle treat treated deserve deserv regardless "
    "innocent suffering suffer tragic serious severe property society community communities human "
    "humanity support individual other peace peaceful positive negative integrity trust justice "
    "unjust legitimate permission authorization authorized imprisonment victim abuse addiction "
    "hatred hate intolerance tolerance acceptance understanding background race gender religion "
    "ethnicity orientation life lives cruel cruelty atrocity atrocities illicit fundamental "
    "freedom conflict dangerous harmful hurtful offend honest honesty lawfully",
    ("", "s", "ed", "ing", "ly", "ful", "al"),
)
"""Words of right and wrong, harm and law, in their endings."""
GRIM = NORMS | family(
    "genocide massacre atrocity atrocities murder kill death die torture slavery enslav enslave "
    "oppress oppression racism racist bigot bigotry exterminat holocaust persecut persecution "
    "segregat segregation exploit exploitation brutal terror terrorism horrific devastat "
    "displac displacement forced inhuman marginalize marginaliz equal welcome merit merits",
    ("", "s", "ed", "ing", "ion", "d"),
)
"""The same, and what people have done to each other."""
COPING = NORMS | family(
    "feel feelings emotion emotional communicate communicat communication dialogue counsel "
    "counselor counselors counseling therapist therapy mediation mediator mediate resolve resolv "
    "resolution solution empathy listen talk openly calm help helpline resource guidance advice "
    "professional friend family authorities police lawyer attorney boundary boundaries protect "
    "secure prevent victim report legitimate constructive healthy volunteer advocate educate "
    "educat education learn understand promote cope coping charity charities local adviser",
    ("", "s", "ed", "ing", "ly"),
)
"""The same, and words of help and of getting on with others."""
ENGLISH = words(
    "the of to and a in is it that for you i not be with on are this or as can was by an have has "
    "do from at we my your they he she will would if but no so what how there all their its me"
)
"""Words that almost every English sentence holds."""
FOREIGN = words(
    "el los las una que por con para puedo siento lo eso je ne pas peux vous les des est une pour "
    "ich nicht das der und ist kann ein eine mir tut leid mi non posso dispiace che per não "
    "desculpe com uma een het niet ik kan dat helpen nie jag kan inte att och det"
)
"""Words of other languages that English hardly holds."""
