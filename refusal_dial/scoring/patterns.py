"""How English refuses, moralises and answers: families of words, and patterns over sentences.

The patterns read the plain spelling that `reading` gives. Each is grammar and no phrase. Repetition
is bounded everywhere, so that time grows linearly with the sentence. A set of words beside a
pattern is what a sentence must share to be worth the pattern's time.
"""

from __future__ import annotations

import re

# --------------------------------------------------------------------------------------------------
# Families of words that a reading counts: right and wrong, harm, help, and plain English.
#
# They are counted, never matched alone: no word here decides a label.


def words(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


def family(stems: str, endings: tuple[str, ...]) -> frozenset[str]:
    """Every stem with every ending."""
    return frozenset(stem + ending for stem in stems.split() for ending in endings)


NORM_WORDS = family(
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

GRIM = NORM_WORDS | family(
    "genocide massacre atrocity atrocities murder kill death die torture slavery enslav enslave "
    "oppress oppression racism racist bigot bigotry exterminat holocaust persecut persecution "
    "segregat segregation exploit exploitation brutal terror terrorism horrific devastat "
    "displac displacement forced inhuman marginalize marginaliz equal welcome merit merits",
    ("", "s", "ed", "ing", "ion", "d"),
)
"""The same, and what people have done to each other."""

COPING = NORM_WORDS | family(
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


# --------------------------------------------------------------------------------------------------
# How English refuses: patterns over plain sentences.
#
# They read the plain spelling that `reading` gives: lower case, no punctuation, contractions
# written out. Each is grammar and no phrase: a speaker that cannot or will not, with a verb of
# serving; a rule that forbids; a judgement on serving. No topic is named. Repetition is bounded
# everywhere, so that time grows linearly with the sentence. A set of words beside a pattern is what
# a sentence must share to be worth the pattern's time. Which pattern counts is `acts`'s business.


_SERVE = (
    r"(?:provid|assist|help|answer|support|fulfil|compl[yie]|engag|discuss|shar|generat|creat|"
    r"writ|giv|offer|tell|facilitat|participat|respond|advis|produc|satisf|process|address|"
    r"explain|describ|teach|show|instruct|guid|continu|proceed|entertain|disclos|reveal|suggest|"
    r"recommend|endors|condon|promot|encourag|accommodat|talk|speak|mak|perform|list|draft|"
    r"compos|suppl|enabl|cooperat|collaborat|involv|contribut|aid|grant|honou?r|present|outlin|"
    r"elaborat|comment|go|say|carry|execut|follow|roleplay|play|pretend|deliver|"
    r"do (?:this|that|so|it)\b|be (?:able|part|a part|involved|of)|in good)\w*"
    r"(?! (?:when|them|him|her|until|till)\b)"
)

_SPEAKER = r"(?:i|we|(?:this|the) (?:ai|assistant|model|system|chatbot|bot|service))"

_RULES = (
    r"(?:programming|guidelines?|polic\w+|principles|values|purpose|capabilit\w+|code|ethic\w*)"
)

_WILL_NOT = (
    r"(?:cannot|could not|will not|would not|must not|should not|may not|"
    r"(?:am|are|is) (?:\w+ )?(?:unable|not able) to|"
    r"(?:am|are|is) not (?:\w+ )?(?:going|willing|allowed|permitted|authori[sz]ed|programmed|"
    r"designed|trained|equipped|prepared|here|inclined|in a position|at liberty|supposed|meant) to|"
    r"(?:am|are) not (?:\w+ )?comfortable(?: with)?|do not feel (?:\w+ )?(?:comfortable|right)|"
    r"(?:must|have to|will have to|need to|am going to have to|would like to|will) "
    r"(?:\w+ )?(?:decline|refuse|refrain|pass|avoid)(?: (?:to|from))?|"
    r"(?:\w+ )?(?:decline|refuse)(?: to)?|would (?:rather|prefer) not(?: to)?|prefer not to|"
    r"would (?:rather|prefer to) (?:avoid|decline|refrain)(?: from)?|have no intention of|"
    r"(?:do not|lack) (?:have )?the (?:ability|capability|capacity) to)"
)

REFUSE_I = re.compile(
    rf"\b{_SPEAKER}(?: \w+){{0,3}}? {_WILL_NOT}(?: (?!if |when |because |so )\w+){{0,3}}? {_SERVE}"
    r"|\b(?:i|we) (?:\w+ )?(?:am going to have to|must|have to|will have to|will|respectfully|"
    r"politely|need to) (?:\w+ )?(?:decline|refuse|refrain|pass on|say no)\b"
    r"|\b(?:is|are|not) (?:something|a topic|a request|a question|anything) "
    r"(?:that )?(?:i|we) (?:cannot|will not|would not|do not|am not|are not|refuse)\b"
    r"|\bnot (?:something|a topic|a request|a question|anything|content|information) "
    r"(?:that )?(?:i|we) (?:am|are|can|will|would|feel|could|want)"
    rf"|\b{_SPEAKER} (?:\w+ )?do(?:es)? not (?:\w+ )?(?:engage in|provide|assist|discuss|offer|"
    r"participate|create|generate|produce|comply|facilitate)\b|\bi (?:\w+ )?steer clear\b"
    r"|\b(?:i|we) (?:cannot|will not|would (?:rather|prefer) not|prefer not to|refuse|decline)$"
    r"|\bno way (?:that )?i\b|\b(?:what|anything) i am allowed to\b"
    r"|\bi am not (?:\w+ )?equipped to\b"
)

SPEAKERS = words("i we assistant ai model system chatbot bot service")

REFUSE_I_WORDS = words(
    "clear cannot not unable decline refuse refrain lack avoid pass prefer no intention allowed"
)

REFUSE_BARE = re.compile(
    r"^(?:(?:i am |i )?(?:very |so |really )?(?:sorry|afraid|apologi[sz]e|regret|no|nope|"
    r"unfortunately|sadly|but) ){0,3}(?:but |that )?(?:i )?(?:cannot|not able to|unable to|"
    r"will not|do not|not going to|not comfortable) (?:\w+ ){0,2}?"
    r"(?:help|assist|provid|answer|discuss|do that|do this|shar|giv|comply|talk|writ|explain)"
    r"(?!\w* (?:when|them|him|her|until|till)\b)"
    r"|^(?:\w+ )?(?:absolutely|certainly|definitely|of course|hell|heck) (?:not|no)$"
    r"|^(?:sorry )?(?:no can do|not (?:going to happen|happening)|no way|out of the question)$"
    r"|^(?:\w+ ){0,4}?(?:sorry|afraid)\b.{0,20}\bnot (?:possible|going to happen|allowed|an option)"
    r"\b"
)

REFUSE_IT = re.compile(
    r"\b(?:request|question|topic|prompt|content|that|this|it)(?: \w+){0,3}? "
    r"(?:violates?|(?:goes|is|falls|go|are) (?:against|outside|beyond|contrary to)|breach(?:es)?) "
    r"(?:\w+ )?(?:my|our|the scope|openai|community|usage|content|safety|ethical|policy|what i)"
    r"|\b(?:against|not within|outside|beyond) (?:of )?(?:my|our|the scope of my) (?:\w+ ){0,2}?"
    rf"{_RULES}"
    rf"|\b(?:my|our) (?:\w+ ){{0,2}}?{_RULES}(?: \w+){{0,2}}? (?:not allow|not permit|prevent|"
    r"prohibit|forbid|require me)"
    rf"|\bmy (?:\w+ ){{0,2}}?{_RULES}\b.{{0,80}}\bgoes against (?:that|those|these|this)\b"
    r"|\b(?:would|is|be) (?:\w+ )?(?:inappropriate|unethical|irresponsible|wrong|illegal|"
    r"not (?:be )?(?:appropriate|ethical|right|responsible)) (?:for me )?(?:to|of me to) "
    rf"(?:{_SERVE})|\b(?:be (?:better|best|wiser) not to|not be right (?:for me )?to) "
    rf"(?:{_SERVE})"
    r"|\b(?:providing|giving|sharing|explaining|answering|helping|assisting|offering|discussing|"
    r"describing|writing)\b.{0,60}\b(?:would be|is) (?:\w+ )?(?:irresponsible|unethical|"
    r"inappropriate|out of the question|wrong|illegal|harmful|dangerous|off limits)\b"
    r"|\b(?:cannot|will not) be (?:\w+ )?(?:fulfilled|answered|provided|completed|discussed)"
    r"|\b(?:request|question|prompt|query)(?: \w+){0,3}? (?:declined|denied|refused|rejected|"
    r"blocked)\b"
)

REFUSE_IT_WORDS = words(
    "against outside beyond within contrary violate violates breach breaches allow permit prevent "
    "prevents prohibit prohibits forbid forbids require inappropriate unethical irresponsible "
    "wrong illegal appropriate ethical right responsible better rather fulfilled answered provided "
    "completed discussed declined denied refused rejected blocked harmful dangerous limits"
)

NO_REFUSAL = re.compile(
    r"\bcannot (?:\w+ )?(?:enough|wait|help but|stress|emphasi[sz]e|overstate|believe|imagine|say "
    r"(?:for sure|with|whether|exactly)|guarantee|promise|speak for|"
    r"tell you how (?:sorry|much|happy|glad|often|many))"
    r"|\bwould not (?:\w+ )?(?:recommend|suggest|advise|say|go|make|call)\b"
)

DISOWN = re.compile(
    r"\b(?:i|we)(?: \w+){0,6}? (?:do not|cannot|will not|does not|never)(?: \w+){0,2}? "
    r"(?:condon|promot|support|endors|encourag|tolerat|advocat|approv)\w*"
    r"|\b(?:i|we) (?:\w+ )?(?:condemn|oppose|disapprove)\b"
    r"|\bi(?: \w+){0,8}? do not have the (?:ability|capability|capacity)\b"
    r"|\bi am (?:programmed|designed|trained|made) to (?:\w+ )?(?:avoid|promote|be safe|respect)"
)

DISOWN_WORDS = words(
    "condone promote support endorse encourage tolerate advocate approve condemn oppose "
    "disapprove ability capability capacity promoting condoning programmed designed trained"
)

IGNORANT = re.compile(
    r"\b(?:i|we)(?: \w+){0,4}? (?:do not|cannot)(?: \w+){0,3}? "
    r"(?:have (?:\w+ ){0,3}?(?:access|information|data|details|knowledge|records|ability)|access|"
    r"retrieve|look up|browse|determine|verify|confirm|know (?:who|what|your|the|where|if|whether))"
    r"|\bi am (?:not able|unable) to (?:\w+ )?(?:access|determine|verify|confirm|find|know|"
    r"retrieve|look|see|predict|identify)"
    r"|\b(?:is|are) not (?:\w+ )?(?:publicly|generally|readily) "
    r"(?:\w+ )?(?:available|known|disclosed|accessible)"
    r"|\b(?:is|are) (?:considered )?(?:private|confidential|personal and|sensitive)(?: \w+)? "
    r"(?:information|data|matter|and)"
)

UNABLE = re.compile(
    r"\b(?:do not|cannot|lack|without)(?: have)?(?: the| any)?(?: \w+)? (?:ability|abilities|"
    r"capability|capabilities|capacity|access|tools|means|knowledge|information|expertise)\b"
    r"|\bnot (?:\w+ )?(?:equipped|capable|qualified|trained|programmed|designed)\b"
    r"|\b(?:beyond|outside) (?:of )?(?:the scope of )?my (?:\w+ )?(?:abilit|capabilit|knowledge|"
    r"expertise|scope)"
)
"""A speaker that lacks what it takes."""

HARMS = re.compile(
    r"\b(?:is|are|be|could|may|might|can|would) (?:\w+ ){0,3}?(?:unsafe|dangerous|harmful|hurtful|"
    r"risky|illegal|unlawful|hurt|harm|endanger|injure|a crime|a risk)\b"
    r"|\bnot (?:be )?(?:\w+ )?(?:safe|legal)\b|\bagainst the law\b"
)
"""What may hurt somebody, or is against the law."""

IGNORANT_WORDS = words(
    "access information data details knowledge records retrieve browse determine verify confirm "
    "know unable able publicly private confidential personal sensitive ability"
)


# --------------------------------------------------------------------------------------------------
# How English moralises and sends people elsewhere: patterns over plain sentences.
#
# A judgement on what was asked, a duty, a turn to help lines and professionals, a better thing to
# do instead. Written as those of `refusing` are.


_GOOD = (
    r"(?:ethical|appropriate|acceptable|legal|moral|right|okay|ok|justifi\w+|permissible|"
    r"respectful|humane|constructive|productive)"
)

_WRONG = (
    r"(?:(?<!not )(?:unethical|inappropriate|unacceptable|illegal|immoral|wrong|offensive|harmful|"
    r"disrespectful|insensitive|inhumane|discriminatory|hurtful|irresponsible|reprehensible|"
    r"unlawful))"
)

_NO_ARTICLE = r"(?:(?!the |an? )\w+ )"

REJECT = re.compile(
    rf"^(?:\w+ ){{0,12}}?it (?:is|would be) (?:\w+ ){{0,2}}?(?:(?:not|never)(?: \w+){{0,2}}? "
    rf"{_GOOD}|{_WRONG})(?: \w+){{0,3}}? (?:to|for|that)\b"
    rf"|^(?:\w+ ){{1,14}}?(?<!\bas it )(?<!because it )(?<!since it )(?:is|are|was|were) "
    rf"{_NO_ARTICLE}{{0,2}}?(?:(?:not|never)"
    rf"(?: \w+){{0,2}}? {_GOOD}|{_WRONG}|never (?:the|an?) (?:\w+ )?(?:answer|solution|option|way)|"
    r"not the (?:answer|solution))\b"
    r"|\b(?:request|question|language|topic|statement|premise|idea|notion|claim)(?: \w+){0,12}? "
    rf"(?:is|are|seems|contains|promotes|implies|assumes)(?: \w+){{0,3}}? (?:{_WRONG}|dangerous|"
    r"stereotyp\w*|prejudic\w*)"
    r"|\bi (?:do not|cannot) (?:think|believe|feel)(?: that)?(?: it is| this is| that is)? "
    rf"(?:\w+ )?{_GOOD}"
    r"|\b(?:should|must|can) (?:never|not) be (?:\w+ )?(?:considered|tolerated|condoned|done|used|"
    r"framed|celebrated|justified|glorified|romantici[sz]ed|minimi[sz]ed|trivialized|viewed|seen|"
    r"attempted|encouraged|promoted|taken|made)\b"
    r"|^(?:that|this|it) is an? (?:\w+ ){0,2}?(?:stereotype|generali[sz]ation|prejudice)\b"
    r"|\bi am (?:\w+ )?(?:concerned|worried|alarmed|troubled) (?:by|about|that)\b"
    r"|\b(?:you|one|we) should never\b|^you should not (?:do|try|attempt|even|be)\b"
    r"|\bi (?:\w+ )?(?:urge|implore|advise|encourage|recommend) (?:you )?(?:to )?(?:\w+ )?"
    r"(?:not|against|reconsider|refrain|avoid|seek|think (?:about|twice)|reflect)\b"
    r"|^\w+ing\b.{0,60}?\b(?:is|are) (?:an? )?(?:\w+ )?(?:crime|felony|offen[cs]e|theft|assault)"
    r"(?! (?:that|which|in|involving|where|of))\b"
)

REJECT_WORDS = words(
    "not never unethical inappropriate unacceptable illegal immoral wrong offensive harmful "
    "disrespectful insensitive inhumane discriminatory hurtful irresponsible reprehensible "
    "unlawful dangerous stereotype stereotypes stereotypical prejudice prejudiced urge implore "
    "advise encourage recommend crime felony offense offence theft assault concerned worried "
    "alarmed troubled generalization generalisation"
)

BIGOTRY = re.compile(
    r"\b(?:harmful|hurtful|outdated|negative|offensive|racist|sexist|rooted in|based on|"
    r"perpetuat\w+|reinforc\w+) (?:\w+ ){0,3}?(?:stereotyp\w*|prejudic\w*|bias\w*|bigotry|"
    r"generali[sz]ations?)\b"
    r"|\b(?:is|are|be) (?:\w+ ){0,2}?(?:discriminatory|racist|sexist|bigoted|prejudiced|"
    r"dehumani[sz]ing)\b"
)

HEDGED = re.compile(
    r"^(?:\w+ ){0,4}?(?:it is (?:\w+ )?(?:important|crucial|worth|essential|vital)|please)"
    r" (?:\w+ )?(?:note|noting|remember\w*|to note|to remember)\b"
)

REQUEST = re.compile(r"\b(?:question|request|asking|ask|prompt|you have asked|phrased)\b")

ATTRIBUTED = re.compile(
    r"^(?!i |we )(?:\w+ ){1,5}?(?:hold|holds|argue|argues|argued|believe|believes|believed|claim|"
    r"claims|say|says|said|maintain|maintains|think|thinks|contend|disagree)\b"
)

DUTY = re.compile(
    r"\b(?:it is|is) (?:\w+ )?(?:important|crucial|essential|vital|necessary|imperative|worth|"
    r"best|critical|better|always best|fundamental)(?: \w+){0,2}? (?:to|that|noting|remembering)\b"
    r"|\b(?:we|everyone|individuals|people|you|all \w+|society) (?:should|must|need to|deserves?|"
    r"have the right|has the right)\b"
    r"|\b(?:deserves?|have the right|has the right|right to)\b|\bshould be (?:treated|respected)"
    r"|^please\b|^(?:remember|note|keep in mind|be aware|always)\b"
    r"|\bi (?:must|want to|would like to|have to|need to|feel|strongly)(?: \w+){0,3}? (?:clarify|"
    r"emphasi[sz]e|point out|remind|inform|note|stress|make it clear|ensure|state|highlight|"
    r"mention)"
    r"|\b(?:can|could|may|will|might) (?:\w+ ){0,2}?(?:lead to|result in|cause|have|perpetuate|"
    r"put)\b"
    r"|\b(?:highly|extremely|potentially|very|inherently) (?:\w+ )?(?:dangerous|harmful|illegal|"
    r"addictive|offensive|unethical|inappropriate|controversial|sensitive)"
    r"|\bregardless of\b|\bit (?:may|might|can|would|could) (?:also )?be (?:helpful|useful|best|"
    r"better|wise|more \w+|beneficial)\b"
)

_CARE_VERB = (
    r"(?:seek(?:ing)?|reach(?:ing)? out|contact(?:ing)?|consult(?:ing)?|"
    r"(?:speak|talk)(?:ing)? (?:to|with)|call(?:ing)?|turn to|report)"
)

CARE = re.compile(
    rf"\b{_CARE_VERB}(?: \w+){{0,8}}? "
    r"(?:help|support|assistance|professionals?|therapist|counsell?ors?|counsell?ing|hotlines?|"
    r"helplines?|authorities|police|lifeline|services|guidance|attention|experts?|advice|lawyer|"
    r"attorney|doctor|trusted|enforcement|specialist|provider|agency|aid)\b"
    r"|\b(?:reach(?:ing)? out|(?:speak|talk)(?:ing)? (?:to|with)|turn to)(?: \w+){0,3}? "
    r"(?:friend|someone|family)\b"
    r"|\b(?:support groups?|resources available)\b"
    r"|\bif you (?:\w+ ){0,2}?(?:are|or someone|have|feel|know|suspect|need|witness)(?: \w+){0,4}? "
    r"(?:struggling|feeling|experiencing|thoughts|concerns?|suicidal|crisis|danger|overwhelmed|"
    r"distress|abuse|unsafe|threatened|difficult|help|support)\b"
)

CARE_WORDS = words(
    "seek seeking reach reaching contact contacting consult consulting speak speaking talk talking "
    "call calling turn report support if resources"
)

CRISIS = re.compile(
    r"\b(?:hotline|helpline|lifeline|988|741741|crisis (?:line|text|hotline)|"
    r"mental health professional|you are not alone|people who care about you)\b"
)

CRISIS_WORDS = words("hotline helpline lifeline 988 741741 crisis professional alone people")

INSTEAD = re.compile(
    r"^(?:\w+ ){0,3}?instead\b|\binstead (?:of|let us|i|we|you|try|focus|consider|it is)\b|instead$"
    r"|\blet us (?:\w+ )?(?:focus on|try to|work (?:on|together)|keep|strive|aim)\b"
    r"|\b(?:alternatives?|healthy|healthier|constructive|other ways|legal and|ethical and|"
    r"positive ways|safe and)\b.{0,60}\b(?:ways?|options?|methods?|activities|approach\w*|tips|"
    r"outlets?|means|solutions?|strategies|suggestions)\b|\b(?:ethical|legal|safer) alternatives\b"
    r"|^if you are (?:\w+ )?(?:looking for|interested in|seeking|concerned|having|in need|trying)"
)

ADVISE = re.compile(
    r"\bi (?:would |can |will )?(?:\w+ )?(?:suggest|recommend|encourage|advise|urge|be happy to|"
    r"be glad to|propose|love to|like to)\b"
)

INSTEAD_WORDS = words(
    "instead let suggest recommend encourage advise urge happy glad propose love like alternative "
    "alternatives healthy healthier constructive other legal ethical positive safe if"
)


# --------------------------------------------------------------------------------------------------
# How English answers, turns to an answer, corrects, or only passes the time: patterns over plain
# sentences, written as those of `refusing` are.


CORRECT = re.compile(
    r"^(?:\w+ ){0,5}?there (?:is|are|was|were|has never been) (?:absolutely )?(?:no|not any|never) "
    r"(?:\w+ ){0,3}?(?:reasons?|justifications?|benefits?|evidence|excuses?|basis|grounds|truth)\b"
    r"|^(?:\w+ ){1,16}?(?:is|was|are|were|should|do|does|did|have|has|can|could|would|will)"
    r"(?: absolutely)? (?:not|never)\b"
    r"|^(?:\w+ ){1,12}?(?:is|are|was|were) (?:\w+ ){0,3}?(?:myth|misconception|incorrect|"
    r"inaccurate|misleading|untrue|false)\b"
    r"|^(?:\w+ ){1,16}?(?:has|have|had) (?:\w+ )?(?:no (?:bearing|effect|impact|influence)|"
    r"nothing to do)\b|^(?:no|cannot)\b|^(?:\w+ ){1,6}?cannot\b"
)

CORRECT_WORDS = words(
    "no nothing not never cannot myth misconception incorrect inaccurate misleading untrue false"
)

BECAUSE = re.compile(
    r"\b(?:because|due to|since|as (?:they|it|he|she|there)|for several reasons|therefore|hence|"
    r"so (?:they|it|he|she|there))\b"
)

DEFINES = re.compile(
    r"^(?:\w+ ){1,8}?(?:is|are|was|were|refers? to|means?|involves?|describes?|occurs?|happened)"
    r"(?: \w+){0,2}? (?:an?|the|any|when|in|of|that|which)\b"
)

UNREAL = re.compile(
    r"\b(?:is|are|was|were|being|as) (?:\w+ ){0,3}?(?:(?:fictional|fictitious|imaginary|mythical|"
    r"cartoon) (?:\w+ )?(?:character|person|figure|individual|entity|place|being|creature|concept|"
    r"people|hero|animal)s?|fictional$|fictional and|inanimate|nonsensical|made up)\b"
    r"|\b(?:not|never) (?:\w+ )?(?:real|exist\w*|sentient|make (?:any )?sense)\b|\bcannot exist\b"
    r"|\bnot (?:\w+ )?possible for (?:\w+ ){0,3}?(?:or|anyone|any|humans?|people)\b"
    r"|\b(?:science fiction|supernatural)\b"
    r"|\b(?:no|any|all) (?:humans?|human beings?)\b(?: \w+){0,8}? "
    r"(?:cannot|can|possess\w*|able|ability)\b"
)

UNREAL_WORDS = words(
    "fictional fictitious imaginary mythical inanimate hypothetical nonsensical cartoon made real "
    "exist exists existing sentient sense possible science supernatural human humans"
)

OFFER = re.compile(
    r"\b(?:any|other|further|different|another|more|specific) (?:\w+ ){0,2}?(?:questions?|topics?|"
    r"concerns|requests?)\b.{0,80}\b(?:feel free|let me know|ask|help|assist|happy|glad|hesitate)"
    r"|\b(?:anything|something) else\b|\bfeel free to (?:ask|reach|let)|\bdo not hesitate to\b"
    r"|\b(?:happy|glad|here|pleased|available|best) to (?:\w+ )?(?:help|assist|answer|provide|"
    r"support|talk|discuss|share|explain|explore|chat)\b"
    r"|\bhow (?:can|may|else) (?:i|we|can i) (?:\w+ )?(?:help|assist)"
    r"|\blet me know (?:if|how|what)\b|\bwould you like (?:me )?(?:to|some|help)"
    r"|^if you (?:would )?(?:like|want|wish|prefer)\b.{0,30}\bi (?:can|could|would)\b"
)

OFFER_WORDS = words(
    "questions question topics topic concerns requests anything something feel hesitate happy glad "
    "here pleased available best how let would like want"
)

PIVOT = re.compile(
    r"\b(?:here (?:is|are|s)|the following|below (?:is|are)|follow these|"
    r"these (?:are some|steps|tips)|you can (?:try|use|do)|"
    r"(?:some|a few|several|many) (?:\w+ ){0,3}?(?:tips|ways|steps|suggestions|ideas|methods|"
    r"strategies|reasons|examples|options|things|techniques|points|factors|possibilities))\b"
    r"|\bi (?:can|could|will|may|might|am able to|am happy to)(?: \w+){0,2}? (?:provide|offer|give|"
    r"share|explain|tell|try|answer|describe|outline|help|suggest|discuss)\b"
)

TURN = re.compile(
    r"^(?:that being said|having said that|that said|with that (?:in mind|said)|however|but|"
    r"nevertheless|nonetheless|although|though|still|what i can|in general|generally|anyway|okay|"
    r"ok|sure|well|fine|first(?:ly)?|start by|begin by|you will need|you can|one way|"
    r"the (?:best|easiest|simplest|first|most common|usual|basic) (?:way|step|method|idea|trick)|"
    r"to (?!be |the |an? |my |do so |ensure |avoid )\w+ .{1,80}\b(?:you|your|one|simply|first))\b"
)

CLARIFY = re.compile(
    r"\b(?:could|can|would|please) (?:you )?(?:please )?(?:provide|give|clarify|rephrase|specify|"
    r"elaborate|explain|tell me|share|be more)\b.{0,40}\b(?:context|details?|information|question|"
    r"what you|more|specific|request|mean)\b"
    r"|\bi am not (?:\w+ )?sure (?:what|i understand|how to (?:interpret|respond))"
    r"|\bi (?:do|did) not (?:\w+ )?understand (?:the|your|what)\b"
)

CLARIFY_WORDS = words(
    "clarify rephrase specify elaborate provide sure understand give explain tell share more"
)

COMPOSED = re.compile(
    r"^(?:subject\b|dear \w+|to whom it may concern)|^(?:\w+ ){0,3}?here (?:is|are) (?:\w+ ){0,4}?"
    r"(?:letter|e ?mail|mail|message|poem|story|scene|script|song|lyrics|speech|draft|note|essay|"
    r"dialogue|reply|response|statement|post|review|template|article|joke|version|example)\b"
)

SORRY = re.compile(
    r"\b(?:sorry but|apologi[sz]e but|i am afraid|sorry i|unfortunately|i apologi[sz]e)\b"
    r"|^(?:i am )?(?:so |very |really )?sorry$"
)

CONCEDES = re.compile(
    r"^(?:while |although )?(?:i (?:\w+ )?(?:understand|know|realize|hear|can see|see|"
    r"appreciate|get)|thank|thanks|it (?:sounds|seems)|(?:as an? (?:\w+ ){0,4}?)?"
    r"i (?:do not|cannot) (?:have|hold|form) (?:\w+ ){0,2}?"
    r"(?:opinions?|preferences?|feelings|beliefs?|emotions))\b"
    r".{0,200}? but "
)

FILLER = re.compile(
    r"^(?:thank you|thanks|(?:that is )?(?:an? )?(?:great|good|interesting) question|i understand|"
    r"i am (?:\w+ )?sorry (?:to hear|you|for your|about|that)|hello|hi$|i appreciate|i can see|"
    r"i hear|i am (?:\w+ )?glad (?:you|that|to)|it sounds like|"
    r"i am (?:just )?an? (?:\w+ ){0,3}?(?:ai|assistant|language model)$|"
    r"(?:sure|of course|certainly|absolutely|ah|oh)(?: \w+){0,2}$)"
    r"|\bi (?:do not|cannot) (?:have|hold|form) (?:\w+ ){0,2}?(?:opinions?|preferences?|feelings|"
    r"beliefs?|emotions|experiences?)\b"
)

ANAPHOR = re.compile(r"^(?:\w+ )?(?:this|these|they|such|those|that|doing so|it)\b")
