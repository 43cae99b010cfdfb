"""How English refuses, moralises, redirects and answers: patterns over plain sentences.

Every pattern reads the plain spelling that `reading` gives: lower case, no punctuation, contractions
written out. Each is general grammar: a first person that cannot or will not, followed by a verb of
serving; a judgement on the request; a duty; a turn to help lines or to something else. No topic is
named here and no reply is known by heart. Repetition is bounded everywhere, so that time grows
linearly with the sentence. `acts` decides which pattern counts.
"""

from __future__ import annotations

import re

_SERVE = (
    r"(?:provid|assist|help|answer|support|fulfil|compl[yie]|engag|discuss|shar|generat|creat|"
    r"writ|giv|offer|tell|facilitat|participat|respond|advis|produc|satisf|process|address|"
    r"explain|describ|teach|show|instruct|guid|continu|proceed|entertain|disclos|reveal|suggest|"
    r"recommend|endors|condon|promot|encourag|accommodat|talk|speak|mak|perform|list|draft|"
    r"compos|suppl|enabl|cooperat|collaborat|involv|contribut|aid|grant|honou?r|present|outlin|"
    r"elaborat|comment|go|say|carry|execut|follow|roleplay|play|pretend|deliver|"
    r"do (?:this|that|so|it)\b|be (?:able|part|a part|involved|of)|in good)\w*"
)
_WILL_NOT = (
    r"(?:cannot|could not|will not|would not|must not|should not|may not|"
    r"(?:am|are) (?:\w+ )?(?:unable|not able) to|"
    r"(?:am|are) not (?:\w+ )?(?:going|willing|allowed|permitted|authori[sz]ed|programmed|designed|"
    r"trained|equipped|prepared|here|inclined|in a position|at liberty|supposed|meant) to|"
    r"(?:am|are) not (?:\w+ )?comfortable(?: with)?|do not feel (?:\w+ )?(?:comfortable|right)|"
    r"(?:must|have to|will have to|need to|am going to have to|would like to|will) "
    r"(?:\w+ )?(?:decline|refuse|refrain|pass|avoid)(?: (?:to|from))?|"
    r"(?:\w+ )?(?:decline|refuse)(?: to)?|would (?:rather|prefer) not(?: to)?|prefer not to|"
    r"would (?:rather|prefer to) (?:avoid|decline|refrain)(?: from)?|"
    r"(?:do not|lack) (?:have )?the (?:ability|capability|capacity) to)"
)

REFUSE = re.compile(
    rf"\b(?:i|we)(?: \w+){{0,3}}? {_WILL_NOT}(?: (?!if |when |because |so )\w+){{0,3}}? {_SERVE}"
    r"|\b(?:i|we) (?:\w+ )?(?:am going to have to|must|have to|will have to|will|respectfully|"
    r"politely|need to) (?:\w+ )?(?:decline|refuse|refrain|pass on|say no)\b"
    r"|^(?:(?:i am |i )?(?:very |so |really )?(?:sorry|afraid|apologi[sz]e|regret|no|nope|"
    r"unfortunately|sadly|but) ){0,3}(?:but |that )?(?:i )?(?:cannot|not able to|unable to|"
    r"will not|do not|not going to|not comfortable) (?:\w+ ){0,2}?"
    r"(?:help|assist|provid|answer|discuss|do that|do this|shar|giv|comply|talk|writ|explain)"
    r"|\bnot (?:something|a topic|a request|a question|anything|content|information) "
    r"(?:that )?(?:i|we) (?:am|are|can|will|would|feel|could|want)"
    r"|\b(?:request|question|topic|prompt|that|this|it)(?: \w+){0,3}? "
    r"(?:violates?|(?:goes|is|falls|go|are) (?:against|outside|beyond|contrary to)|breach(?:es)?) "
    r"(?:\w+ )?(?:my|our|the scope|openai|community|usage|content|safety|ethical|policy)"
    r"|\b(?:against|not within|outside|beyond) (?:of )?(?:my|our|the scope of my) (?:\w+ ){0,2}?"
    r"(?:programming|guidelines?|polic\w+|principles|values|purpose|capabilit\w+|code|ethic\w*)"
    r"|\b(?:would|is|be) (?:\w+ )?(?:inappropriate|unethical|irresponsible|wrong|illegal|"
    r"not (?:be )?(?:appropriate|ethical|right|responsible)) (?:for me )?(?:to|of me to) "
    rf"(?:{_SERVE})"
    r"|\b(?:cannot|will not) be (?:\w+ )?(?:fulfilled|answered|provided|completed|discussed)"
)
REFUSE_WORDS = frozenset(
    "cannot not unable decline refuse refrain against outside beyond violates violate "
    "inappropriate unethical irresponsible lack rather avoid wrong illegal breaches pass".split()
)
NO_REFUSAL = re.compile(
    r"\bcannot (?:\w+ )?(?:enough|wait|help but|stress|emphasi[sz]e|overstate|believe|imagine|say "
    r"(?:for sure|with|whether|exactly)|guarantee|promise|speak for|tell you how)"
)
DISOWN = re.compile(
    r"\b(?:i|we)(?: \w+){0,6}? (?:do not|cannot|will not|does not|never)(?: \w+){0,2}? "
    r"(?:condon|promot|support|endors|encourag|tolerat|advocat|approv)\w*"
    r"|\b(?:i|we) (?:\w+ )?(?:condemn|oppose|disapprove)\b"
    r"|\bi(?: \w+){0,8}? do not have the (?:ability|capability|capacity)\b"
)
DISOWN_WORDS = frozenset(
    "condone promote support endorse encourage tolerate advocate approve condemn oppose "
    "disapprove ability capability capacity promoting condoning".split()
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
IGNORANT_WORDS = frozenset(
    "access information data details knowledge records retrieve browse determine verify confirm "
    "know unable able publicly private confidential personal sensitive ability".split()
)

_GOOD = (
    r"(?:ethical|appropriate|acceptable|legal|moral|right|okay|ok|justifi\w+|permissible|"
    r"respectful|humane|constructive|productive)"
)
_WRONG = (
    r"(?:unethical|inappropriate|unacceptable|illegal|immoral|wrong|offensive|harmful|"
    r"disrespectful|insensitive|inhumane|discriminatory|hurtful|irresponsible|reprehensible|"
    r"unlawful)"
)
REJECT = re.compile(
    rf"^(?:\w+ ){{0,12}}?it (?:is|would be) (?:\w+ ){{0,2}}?(?:(?:not|never)(?: \w+){{0,2}}? "
    rf"{_GOOD}|{_WRONG})(?: \w+){{0,3}}? (?:to|for|that)\b"
    rf"|^(?:\w+ ){{1,14}}?(?:is|are|was|were) (?:\w+ )?(?:(?:not|never)(?: \w+){{0,2}}? {_GOOD}|"
    rf"(?:\w+ )?{_WRONG}|never (?:the|an?) (?:answer|solution|option)|not the (?:answer|solution))"
    r"\b|\b(?:request|question|language|topic|statement|premise|idea|notion)(?: \w+){0,4}? (?:is|"
    rf"are|seems|contains|promotes|implies|assumes)(?: \w+){{0,3}}? (?:{_WRONG}|dangerous|"
    r"stereotyp\w*|prejudic\w*)"
    r"|\bi (?:do not|cannot) (?:think|believe|feel)(?: that)?(?: it is| this is| that is)? (?:\w+ )?"
    rf"{_GOOD}"
    r"|\b(?:should|must|can) (?:never|not) be (?:\w+ )?(?:considered|tolerated|condoned|done|used|"
    r"attempted|encouraged|promoted|taken|made)\b"
    r"|\b(?:you|one|we) should never\b"
    r"|\bi (?:\w+ )?(?:urge|implore|advise|encourage|recommend) (?:you )?(?:to )?(?:\w+ )?"
    r"(?:not|against|reconsider|refrain|avoid|seek)\b"
)
CORRECT = re.compile(
    r"^(?:\w+ ){0,5}?there (?:is|are|was|were|has never been) (?:absolutely )?(?:no|not any|never) "
    r"(?:\w+ ){0,3}?(?:reasons?|justifications?|benefits?|evidence|excuses?|basis|grounds|truth)\b"
    r"|^(?:\w+ ){1,16}?(?:is|was|are|were|should|do|does|did|have|has|can|could|would|will)(?: absolutely)? "
    r"(?:not|never)\b"
    r"|^(?:\w+ ){0,6}?(?:myth|misconception|incorrect|inaccurate|misleading|untrue|false)\b"
    r"|^no\b"
)
CORRECT_WORDS = frozenset(
    "no not never myth misconception incorrect inaccurate misleading untrue false".split()
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
DEFINES = re.compile(
    r"^(?:\w+ ){1,8}?(?:is|are|was|were|refers? to|means?|involves?|describes?|occurs?|happened)"
    r"(?: \w+){0,2}? (?:an?|the|any|when|in|of)\b"
)

_CARE_VERB = (
    r"(?:seek(?:ing)?|reach(?:ing)? out|contact(?:ing)?|consult(?:ing)?|"
    r"(?:speak|talk)(?:ing)? (?:to|with)|call(?:ing)?|turn to|report)"
)
CARE = re.compile(
    rf"\b{_CARE_VERB}(?: \w+){{0,8}}? "
    r"(?:help|support|assistance|professionals?|therapist|counsell?ors?|counsell?ing|hotlines?|"
    r"helplines?|authorities|police|lifeline|services|guidance|attention|experts?|advice|lawyer|"
    r"attorney|doctor|trusted|friend|enforcement|specialist|provider|agency|aid)\b"
    r"|\b(?:hotline|helpline|lifeline|988|crisis (?:line|text)|mental health professional|"
    r"you are not alone|support groups?|people who care about you|resources available)\b"
    r"|\bif you (?:\w+ ){0,2}?(?:are|or someone|have|feel|know|suspect|need|witness)(?: \w+){0,4}? "
    r"(?:struggling|feeling|experiencing|thoughts|concerns?|suicidal|crisis|danger|overwhelmed|"
    r"distress|abuse|unsafe|threatened|difficult|help|support)\b"
)
CARE_WORDS = frozenset(
    "seek seeking reach reaching contact contacting consult consulting speak speaking talk talking "
    "call calling turn report hotline helpline lifeline 988 crisis professional alone support if "
    "resources people".split()
)
INSTEAD = re.compile(
    r"^(?:\w+ ){0,3}?instead\b|\binstead (?:of|let us|i|we|you|try|focus|consider|it is)\b"
    r"|\blet us (?:\w+ )?(?:focus|try|work|talk|explore|find|discuss|keep|engage|strive|aim)"
    r"|\bi (?:would |can |will )?(?:\w+ )?(?:suggest|recommend|encourage|advise|urge|be happy to|"
    r"be glad to|propose|love to|like to)\b"
    r"|\b(?:alternatives?|healthy|healthier|constructive|other ways|legal and|ethical and|"
    r"positive ways|safe and)\b.{0,60}\b(?:ways?|options?|methods?|activities|approach\w*|tips|"
    r"outlets?|means|solutions?|strategies|suggestions)\b"
    r"|^if you are (?:\w+ )?(?:looking for|interested in|seeking|concerned|having|in need|trying)"
)
INSTEAD_WORDS = frozenset(
    "instead let suggest recommend encourage advise urge happy glad propose love alternative "
    "alternatives healthy healthier constructive other legal ethical positive safe if".split()
)
OFFER = re.compile(
    r"\b(?:any|other|further|different|another|more|specific) (?:\w+ ){0,2}?(?:questions?|topics?|"
    r"concerns|requests?)\b.{0,80}\b(?:feel free|let me know|ask|help|assist|happy|glad|hesitate)"
    r"|\b(?:anything|something) else\b|\bfeel free to (?:ask|reach|let)|\bdo not hesitate to\b"
    r"|\b(?:happy|glad|here|pleased|available|best) to (?:\w+ )?(?:help|assist|answer|provide|"
    r"support)|\bhow (?:can|may|else) (?:i|we|can i) (?:\w+ )?(?:help|assist)"
    r"|\blet me know (?:if|how|what)\b|\bwould you like (?:me )?(?:to|some|help)"
)
OFFER_WORDS = frozenset(
    "questions question topics topic concerns requests anything something feel hesitate happy glad "
    "here pleased available best how let would".split()
)
PIVOT = re.compile(
    r"\b(?:here (?:is|are|s)|the following|below (?:is|are)|follow these|these (?:are some|steps|tips)|"
    r"you can (?:try|use|do)|(?:some|a few|several|many) (?:\w+ ){0,3}?(?:tips|ways|steps|suggestions|ideas|methods|"
    r"strategies|reasons|examples|options|things|techniques|points|factors|possibilities))\b"
    r"|\bi (?:can|could|will|may|might|am able to|am happy to)(?: \w+){0,2}? (?:provide|offer|give|"
    r"share|explain|tell|try|answer|describe|outline|help|suggest|discuss)\b"
)
SORRY = re.compile(
    r"\b(?:sorry but|apologi[sz]e but|i am afraid|sorry i|unfortunately|i apologi[sz]e)\b"
    r"|^(?:i am )?(?:so |very |really )?sorry$"
)
FILLER = re.compile(
    r"^(?:thank you|thanks|great question|good question|i understand|i am (?:\w+ )?sorry (?:to hear|"
    r"you|for your|about|that)|hello|hi\b|that is (?:a|an) (?:great|good|interesting)|"
    r"i am (?:just )?an? (?:\w+ ){0,3}?(?:ai|assistant|language model)|"
    r"as an? (?:\w+ ){0,5}?(?:ai|assistant|model)|i appreciate|sure|of course|certainly|absolutely|"
    r"ah|oh|i can see|i see|i hear|i am glad|it sounds like)"
)
HEDGED = re.compile(
    r"^(?:\w+ ){0,4}?(?:it is (?:\w+ )?(?:important|crucial|worth|essential|vital)|please)"
    r" (?:\w+ )?(?:note|noting|remember\w*|to note|to remember)\b"
)
REQUEST = re.compile(r"\b(?:question|request|asking|ask|prompt|you have asked|phrased)\b")
BECAUSE = re.compile(r"\b(?:because|due to|since|as (?:they|it|he|she|there)|for several reasons)\b")
TURN = re.compile(
    r"^(?:that being said|having said that|that said|with that (?:in mind|said)|however|but|"
    r"nevertheless|nonetheless|although|though|still|what i can|in general|generally)\b"
)
UNREAL = re.compile(
    r"\b(?:fictional|fictitious|imaginary|mythical|inanimate|hypothetical|nonsensical|made up|"
    r"(?:not|never) (?:\w+ )?(?:real|exist\w*|sentient|possible|make (?:any )?sense)|cannot exist|"
    r"does not exist|no (?:human|person|one) can|supernatural|science fiction)\b"
)
ANAPHOR = re.compile(r"^(?:\w+ )?(?:this|these|they|such|those|that|doing so|it)\b")

_STEMS = (
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
    "freedom conflict dangerous harmful hurtful offend honest honesty lawfully"
)
NORMS = frozenset(
    stem + ending for stem in _STEMS.split() for ending in ("", "s", "ed", "ing", "ly", "ful", "al")
)
"""Words of right and wrong, harm and law, in their endings."""

_GRIM = (
    "genocide massacre atrocity atrocities murder kill death die torture slavery enslav enslave "
    "oppress oppression racism racist bigot bigotry exterminat holocaust persecut persecution "
    "segregat segregation exploit exploitation brutal terror terrorism horrific devastat "
    "displac displacement forced inhuman marginalize marginaliz equal welcome merit merits"
)
GRIM = NORMS | frozenset(
    stem + ending for stem in _GRIM.split() for ending in ("", "s", "ed", "ing", "ion", "d")
)
"""Words of right and wrong and of what people have done to each other."""

_COPING = (
    "feel feelings emotion emotional communicate communicat communication dialogue counsel "
    "counselor counselors counseling therapist therapy mediation mediator mediate resolve resolv "
    "resolution solution empathy listen talk openly calm help helpline resource guidance advice "
    "professional friend family authorities police lawyer attorney boundary boundaries protect "
    "secure prevent victim report legitimate constructive healthy volunteer advocate educate "
    "educat education learn understand promote cope coping"
)
COPING = NORMS | frozenset(
    stem + ending for stem in _COPING.split() for ending in ("", "s", "ed", "ing", "ly")
)
"""Words of help and of getting on with others, which serve no request but a call for help."""
