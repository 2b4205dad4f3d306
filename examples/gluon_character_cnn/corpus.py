"""Synthetic product reviews in seven categories, with an honest held-out part.

The reviews are written by a grammar, not by customers: this corpus stands in for the Amazon
product data, which may not be redistributed here. Accuracy on it says that the network learned
to tell the vocabularies apart, not how it would do on real reviews.

What keeps the held-out figure meaningful: validation reviews use only sentence and title
templates that training never sees, and a share of their content words is absent from training
as well. Fillers ("arrived on time") and opinions ("great", "awful") are common to all
categories, and some words ("story", "case", "quality") belong to several, so only content words
in combination tell the category. The split between seen and held-out words is fixed, not drawn
from the seed, so figures of different seeds compare. Standard library only.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

# Every fourth content word is kept out of training.
HELD_OUT_STRIDE = 4
# Share of content words in validation reviews that training never saw.
HELD_OUT_WORD_RATE = 0.25
TYPO_RATE = 0.02
FILLER_RATE = 0.35
LONG_REVIEW_RATE = 0.04
SENTENCE_COUNTS = (1, 2, 3, 4)
SENTENCE_WEIGHTS = (0.40, 0.32, 0.18, 0.10)
LONG_SENTENCE_COUNTS = tuple(range(6, 13))
# A customer in a hurry writes a few words, not a sentence.
TERSE_RATE = 0.25


@dataclass(frozen=True, slots=True)
class Review:
    """One review as a client would send it, and the index of its category."""

    title: str
    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that tell one category from another, by their role in a sentence."""

    items: tuple[str, ...]
    aspects: tuple[str, ...]
    traits: tuple[str, ...]
    events: tuple[str, ...]

    def split(self) -> tuple["Vocabulary", "Vocabulary"]:
        """Return the words used for training, and those that only validation uses."""
        roles = (self.items, self.aspects, self.traits, self.events)
        return Vocabulary(*map(_seen, roles)), Vocabulary(*map(_held_out, roles))


def _seen(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(w for i, w in enumerate(words) if i % HELD_OUT_STRIDE != HELD_OUT_STRIDE - 1)


def _held_out(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(words[HELD_OUT_STRIDE - 1 :: HELD_OUT_STRIDE])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split(","))


VOCABULARIES: dict[str, Vocabulary] = {
    "Home_and_Kitchen": Vocabulary(
        items=_words(
            """frying pan, blender, toaster, kettle, coffee maker, saucepan, vacuum cleaner,
            cutting board, chef knife, mixing bowl, can opener, pillow, mattress topper, duvet,
            curtain, bath towel, dish rack, slow cooker, food processor, baking sheet, rice
            cooker, spatula, juicer, storage container, wine glass, mug, skillet, lamp, rug,
            ironing board, trash can, shower curtain, bed sheet, air fryer, wok, roasting tin,
            kitchen scale, garlic press, measuring cup, casserole dish, espresso machine,
            humidifier, laundry basket, shelf unit, candle holder, tea pot, peeler, whisk"""
        ),
        aspects=_words(
            """nonstick coating, handle, lid, motor, suction, thermostat, blades, heating
            element, carafe, drip tray, thread count, hinge, power cord, glass jar, stainless
            steel, rubber feet, counter space, oven temperature, cleaning, filter basket, bowl,
            enamel, wooden base, pouring spout, kitchen drawer, recipe booklet, cooking surface,
            dishwasher rack"""
        ),
        traits=_words(
            """dishwasher safe, rust proof, heatproof, easy to clean, microwave safe, absorbent,
            oven safe, spill proof, fluffy, cast iron, ceramic, stackable, copper,
            hypoallergenic, airtight, scorched, greasy, wobbly on the counter, sharp, cordless"""
        ),
        events=_words(
            """heats evenly, boils water quickly, chops onions, burns the toast, leaks on the
            counter, keeps soup warm, brews coffee, rusts in the sink, fits in the cupboard,
            makes smoothies, cooks rice, picks up dust, scratches the pan, bakes bread, cleans
            the carpet, slices tomatoes, fries eggs, grinds beans, brightens the bedroom, looks
            lovely in the kitchen"""
        ),
    ),
    "Books": Vocabulary(
        items=_words(
            """novel, paperback, hardcover, memoir, cookbook, biography, textbook, trilogy,
            thriller, picture book, poetry collection, short story, autobiography, study guide,
            anthology, fairy tale, history book, kindle edition, detective novel, book, volume,
            diary, travel guide, bestseller, fantasy saga, workbook, romance novel, dictionary,
            manuscript, essay collection, bedtime book, sequel novel, graphic novel, first
            edition, audiobook, reference book"""
        ),
        aspects=_words(
            """plot, author, chapters, prose, writing style, characters, narrator, last page,
            ending, story, binding, font size, footnotes, dialogue, vocabulary, heroine, cover
            art, first chapter, research, pages, storytelling, introduction, paragraphs,
            glossary, writer, index, translation, epilogue, print quality, pacing,
            illustrations, preface, spine, reading, themes, point of view"""
        ),
        traits=_words(
            """well written, hard to put down, page turning, poorly edited, literary, wordy,
            thought provoking, poetic, readable, informative, scholarly, gripping to read,
            fictional, well researched, full of typos, verbose, historical, insightful,
            philosophical, beautifully narrated"""
        ),
        events=_words(
            """kept me reading all night, drags in the middle chapters, explains the theory,
            reads like a diary, teaches grammar, made me turn the pages, tells the life of the
            author, quotes other writers, follows the heroine, ends on a cliffhanger, describes
            the war years, belongs on every bookshelf, is worth reading twice, was written for
            children, introduces the narrator, summarizes the research"""
        ),
    ),
    "CDs_and_Vinyl": Vocabulary(
        items=_words(
            """album, record, vinyl, compact disc, box set of albums, debut album, live album,
            single, greatest hits, lp, remaster, cd, symphony, concert recording, jazz record,
            compilation, double album, soundtrack album, vinyl pressing, mixtape, song, opera
            recording, track, piano concerto, tribute album, christmas album, studio album,
            bonus disc, ballad, ep, country album, blues record, reissue, string quartet, rock
            album, choral work"""
        ),
        aspects=_words(
            """sound, lyrics, vocals, guitar solo, bass line, drums, melody, chorus, sound
            quality, playback, singer, harmonies, recording, mix, tracks, saxophone, audio
            quality, rhythm, mastering, piano, tunes, production, surface noise, band, beats,
            voice, orchestra, liner notes, stereo sound, music, songwriting, riffs, acoustics,
            tone, songs, tempo"""
        ),
        traits=_words(
            """catchy, melodic, remastered, out of tune, acoustic, soulful, funky, danceable,
            well recorded, beautifully sung, jazzy, over produced, groovy, orchestral,
            instrumental, bluesy, upbeat, harmonic, lyrical, symphonic"""
        ),
        events=_words(
            """plays without a skip, makes me dance, rocks from start to finish, sounds like
            their early work, skips on the turntable, has been in my stereo all week, makes me
            sing along, crackles on my record player, brings back the seventies, sounds warm on
            vinyl, sounds muddy, swings, features the original band, captures the concert, has
            no bad song, is music to my ears, hits every note, fills the room with sound, plays
            well on my turntable, sounds better than the radio"""
        ),
    ),
    "Movies_and_TV": Vocabulary(
        items=_words(
            """movie, film, dvd, blu ray, tv series, documentary, season, horror flick, sitcom,
            sequel, western, comedy, box set of the show, miniseries, drama, cartoon, action
            movie, director cut, romantic comedy, thriller movie, episode, classic film, tv
            show, musical film, science fiction film, war movie, animated film, remake, crime
            series, pilot episode, silent film, anime series, feature film, trailer, superhero
            movie, period drama"""
        ),
        aspects=_words(
            """acting, direction, story, special effects, cast, screenplay, director,
            cinematography, actors, picture quality, subtitles, stunts, scenes, plot twist,
            camera work, costumes on screen, performances, script, storyline, leading lady,
            hero, soundtrack, bonus features, finale, actress, widescreen transfer, editing,
            deleted scenes, villain, film score, jokes, commentary track, dialogue, car chase,
            opening scene, animation"""
        ),
        traits=_words(
            """well acted, badly directed, suspenseful, cinematic, oscar worthy, scary, action
            packed, miscast, visually stunning, hilarious, poorly dubbed, black and white,
            family friendly to watch, star studded, well filmed, gory, binge worthy, dramatic,
            slow moving on screen, spooky"""
        ),
        events=_words(
            """had me laughing out loud, kept us on the edge of our seats, stars a great actor,
            won an oscar, is worth watching again, made me cry in the theater, was filmed in
            paris, looks great on blu ray, was cancelled after one season, froze in my dvd
            player, scared the kids, deserves an academy award, is fun to watch with popcorn,
            shows great acting, was directed by a master, drags in the second act"""
        ),
    ),
    "Cell_Phones_and_Accessories": Vocabulary(
        items=_words(
            """phone case, charger, screen protector, smartphone, usb cable, power bank, car
            charger, headset, phone, phone holder, battery pack, selfie stick, sim card, wall
            adapter, cell phone, earpiece, wireless charger, phone cover, bluetooth headset,
            stylus, iphone case, charging dock, android phone, lanyard, galaxy case, car mount,
            lightning cable, flip phone, spare battery, tempered glass, iphone, prepaid phone,
            belt clip, armband for the phone, otterbox, micro usb cord"""
        ),
        aspects=_words(
            """battery life, touch screen, charging port, signal, call quality, buttons,
            bluetooth, keypad, camera lens cutout, volume button, reception, usb port, battery,
            microphone, screen, silicone case, charging speed, adhesive, text messages, wireless
            range, home button, cell service, voltage, antenna, phone calls, display, plug,
            memory card, caller id, apps, connector, speakerphone"""
        ),
        traits=_words(
            """unlocked, shock proof, scratch resistant, fully charged, compatible with my
            iphone, rechargeable, drop proof, dual sim, wireless, fast charging, hands free,
            overheating, bubble free, slim on the phone, cracked, magnetic"""
        ),
        events=_words(
            """charges my phone, drains the battery, drops calls, protects the screen, fits my
            iphone, stopped charging, pairs with my phone, cracked when i dropped the phone,
            snaps on the phone, covers the camera lens, blocks the signal, holds a charge,
            connects over bluetooth, fits the galaxy, leaves bubbles on the screen, freezes when
            texting, plugs into the usb port, syncs my contacts, keeps my phone from slipping,
            rings loudly"""
        ),
    ),
    "Sports_and_Outdoors": Vocabulary(
        items=_words(
            """tent, sleeping bag, yoga mat, bicycle, bike helmet, fishing rod, backpack, kayak,
            dumbbell, treadmill, water bottle, tennis racket, basketball, golf club, soccer
            ball, hiking pole, compass, exercise bike, camping stove, jump rope, hunting knife,
            football, bike pump, paddle, resistance band, flashlight, baseball bat, punching
            bag, scope, bow, weight bench, ski pole, swim goggles, pedometer, hammock, cooler,
            skateboard, bike lock, rifle sling, climbing rope, barbell, canteen, air mattress
            for camping, fishing reel"""
        ),
        aspects=_words(
            """tent poles, grip, resistance, bike tires, seat post, workout, balance, trail,
            aim, handlebars, water resistance, swing, pedals, straps on the pack, range, bounce,
            gear, weights, brakes, rain fly, training, arrow rest, floor padding, exercise, ammo
            pouch, wheels, hooks, traction, saddle, bike chain, muscle tone, inner tube"""
        ),
        traits=_words(
            """waterproof on the trail, lightweight to carry, adjustable on the bike,
            collapsible, rugged, weather resistant, buoyant, aerodynamic, inflatable, ergonomic
            on long rides, sturdy outdoors, camouflage, foldable for camping, accurate at fifty
            yards, athletic, windproof"""
        ),
        events=_words(
            """survived a week of camping, keeps me dry on hikes, helps my golf swing, tones my
            legs, pumps up the tires, went with us up the mountain, catches fish, holds air
            after a game, makes my workout harder, stays steady on the trail, sets up at the
            campsite, broke on the first ride, is perfect for the gym, shoots straight, improved
            my tennis, floats on the lake, helps me train for the marathon, was made for
            hunting, rolls smoothly, gets me running"""
        ),
    ),
    "Clothing_Shoes_and_Jewelry": Vocabulary(
        items=_words(
            """dress, shirt, sneakers, necklace, pair of jeans, jacket, earrings, sandals,
            sweater, bracelet, boots, skirt, wedding ring, hoodie, socks, handbag, scarf,
            blouse, leggings, pendant, high heels, t shirt, watch, cardigan, coat, belt, bra,
            slippers, swimsuit, wallet, pair of pants, loafers, gown, shorts, hat, gloves,
            silver chain, purse, costume, brooch, running shoes, underwear, tie, pajamas"""
        ),
        aspects=_words(
            """fabric, zipper, waist, heel, sleeves, stitching, size chart, inseam, collar,
            cotton, arch support, lining, sizing, leather, clasp, hem, shoulders, buttons on the
            shirt, width, neckline, shade of blue, soles, elastic, pockets, fit, insole, silver,
            gemstone, material, laces, diamond, toe box, seams, color, waistband, embroidery"""
        ),
        traits=_words(
            """true to size, stylish, too tight in the waist, fashionable, flattering, comfy to
            wear, stretchy, baggy, elegant, see through, size small, gold plated, itchy,
            slimming, casual, sparkly, soft on the skin, faux leather, snug, wrinkled, cute,
            knitted, narrow in the toes, vintage"""
        ),
        events=_words(
            """runs a size small, shrank in the wash, goes with every outfit, pinches my toes,
            fits like a glove, gets compliments at the office, faded after one wash, turned my
            finger green, hugs my hips, looks great with jeans, ripped at the seam, is
            comfortable to walk in, sparkles in the light, keeps my feet warm, rides up, hangs
            nicely, made me look slim, matches my dress, tarnished in a week, needs a bigger
            size"""
        ),
    ),
}

CATEGORIES = tuple(VOCABULARIES)

OPINIONS = _words(
    """great, good, excellent, fantastic, amazing, wonderful, awful, terrible, poor, perfect,
    nice, disappointing, superb, decent, mediocre, outstanding, lovely, horrible, impressive,
    brilliant, the best, the worst, fine, first class, cheap, incredible, solid, so so, top
    notch, weak"""
)

FILLERS = _words(
    """arrived on time, great price, five stars, would buy again, highly recommended, very happy
    with it, not worth the money, fast shipping, bought it as a gift, exactly as described,
    thank you, great value, i love it, do not waste your money, what a disappointment, one star,
    my son loves it, it was delivered early, my wife bought it for me, i was skeptical at first,
    came well packaged, the seller was helpful, good quality for the price, i would give it ten
    stars, ordered two of them, never again, better than expected, you get what you pay for, my
    husband is happy, returned it, it is the best, fantastic quality overall, everyone should
    get one, i have told all my friends, customer service answered within a day, the box was
    damaged, works for us, i read the other comments before buying, my neighbor recommended it,
    the picture on the site is accurate, i paid full amount and regret nothing, a present for my
    mother, compared to others it wins, think twice before you order, could not ask for more, it
    took a month to get here, i am returning it tomorrow, we use it every day, surprised by how
    much we like it, nobody believed me, hopefully they improve it, still happy after a year,
    there must be something better out there, i have no complaints, it does what it says, honest
    opinion, here are my thoughts, update after six months, sorry to say this, you should try it
    yourself, money well spent, my parents enjoy it, children like it, big thumbs up, stay away
    from this one, what can i say, trust me on this, thanks to the company for a quick answer"""
)

TRAIN_SENTENCES = (
    "the {aspect} is {opinion}",
    "{opinion} {aspect}",
    "{opinion} {aspect} and {aspect}",
    "i bought this {item} last month and the {aspect} is {opinion}",
    "this {item} is {trait}",
    "this {item} {event}",
    "it is {trait} and {event}",
    "it {event} and the {aspect} is {opinion}",
    "the {aspect} and the {aspect} are {opinion}",
    "{opinion} {item} with {opinion} {aspect}",
    "i have owned many {items} but this one {event}",
    "my daughter wanted a {trait} {item}",
    "if you need a {trait} {item} this is it",
    "we were looking for a {item} that {event}",
    "the {aspect} could be better but it {event}",
    "{items} like this are hard to find",
    "not the {item} i expected because the {aspect} is {opinion}",
    "love the {aspect}",
    "hated the {aspect}",
    "{trait} and {trait}",
    "the only problem is the {aspect}",
    "for a {trait} {item} the price is fair",
    "after two weeks the {aspect} is still {opinion}",
    "{aspect} {aspect} and {aspect} all {opinion}",
    "the {item} came with {opinion} {aspect}",
    "what i like most is that it {event}",
    "{opinion} {aspect} for a {item}",
    "one of the {items} that really {event}",
    "who knew a {item} could be so {trait}",
    "everything about this {item} is {opinion} especially the {aspect}",
    "do not let the {aspect} fool you, it is {opinion}",
    "when the {item} arrived the {aspect} was {opinion}",
    "my friend asked about the {aspect} right away",
    "i could talk about the {aspect} for hours",
    "some people complain about the {aspect} but mine {event}",
    "both {items} we tried had {opinion} {aspect}",
    "{trait} with {opinion} {aspect}",
    "their {items} are always {trait}",
    "no other {item} comes close",
    "the {aspect} makes up for it",
    "as a present it was {opinion} since it {event}",
    "please make more {items} like that",
)

HELD_OUT_SENTENCES = (
    "honestly the {aspect} was {opinion} from day one",
    "i would call this {item} {trait}",
    "{aspect} was {opinion} but {aspect} was not",
    "there are other {items} but none so {trait}",
    "you will be surprised how it {event}",
    "{opinion} all around thanks to the {aspect}",
    "compared with my old {item} the {aspect} feels {opinion}",
    "my brother says it {event} too",
    "a {trait} {item}",
    "with {aspect} this {opinion} nobody can complain",
    "do you want {opinion} {aspect} then get these {items}",
    "three things stand out: {aspect}, {aspect} and {aspect}",
)

TRAIN_TITLES = (
    "{opinion} {item}",
    "{opinion} {aspect}",
    "{opinion}",
    "{filler}",
    "a {trait} {item}",
    "{item} is {opinion}",
    "{trait}",
    "this {item} {event}",
    "love this {item}",
    "{name} is {opinion}",
    "{name} is a {opinion} {item}",
)

HELD_OUT_TITLES = (
    "{opinion} but not {trait}",
    "so {opinion}!",
    "my new {item}",
    "{opinion} {aspect}, {opinion} {item}",
    "{filler} :)",
    "another {opinion} one from {name}",
)

# Names of products and makers tell nothing here; without them the network would never meet a
# word that it has to ignore. They are made up from syllables, so they hardly ever repeat.
NAME_SYLLABLES = _words(
    """al, ba, cor, del, en, fa, gra, hol, in, jen, ka, lu, mer, nor, o, per, qui, ra, sen, ti,
    ul, ver, wil, xan, yo, zel, tion, cep, man, dor, lex, by, son, ter, mi, na"""
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """Templates and words for one part (training or validation) of the corpus."""

    sentences: tuple[str, ...]
    titles: tuple[str, ...]
    held_out_word_rate: float


TRAINING = Grammar(TRAIN_SENTENCES, TRAIN_TITLES, 0.0)
VALIDATION = Grammar(HELD_OUT_SENTENCES, HELD_OUT_TITLES, HELD_OUT_WORD_RATE)


def generate(count: int, seed: int, grammar: Grammar) -> list[Review]:
    """Write `count` reviews, categories in turn; the same arguments give the same reviews."""
    rng = random.Random(seed)
    writers = [_Writer(rng, grammar, VOCABULARIES[name]) for name in CATEGORIES]
    return [
        Review(*writers[i % len(writers)].write(), label=i % len(writers)) for i in range(count)
    ]


class _Writer:
    """Writes reviews of one category."""

    def __init__(self, rng: random.Random, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self.rng = rng
        self.grammar = grammar
        self.seen, self.held_out = vocabulary.split()

    def write(self) -> tuple[str, str]:
        """Return a title and a text that together hold at least one content word."""
        title = self._fill(self.rng.choice(self.grammar.titles))
        parts = [self._sentence() for _ in range(self._sentence_count())]
        parts += [self.rng.choice(FILLERS) for _ in parts if self.rng.random() < FILLER_RATE]
        self.rng.shuffle(parts)
        return self._finish(title), self._finish(self._join(parts))

    def _sentence_count(self) -> int:
        if self.rng.random() < LONG_REVIEW_RATE:
            return self.rng.choice(LONG_SENTENCE_COUNTS)
        return self.rng.choices(SENTENCE_COUNTS, SENTENCE_WEIGHTS)[0]

    def _sentence(self) -> str:
        if self.rng.random() < TERSE_RATE:
            return self._terse()
        return self._fill(self.rng.choice(self.grammar.sentences))

    def _terse(self) -> str:
        words = [self._content("aspects") for _ in range(self.rng.choice((1, 2, 2, 3)))]
        words.insert(self.rng.randrange(len(words) + 1), self.rng.choice(OPINIONS))
        return " ".join(words)

    def _content(self, role: str) -> str:
        unseen = self.rng.random() < self.grammar.held_out_word_rate
        words: tuple[str, ...] = getattr(self.held_out if unseen else self.seen, role)
        return self.rng.choice(words)

    def _fill(self, template: str) -> str:
        pieces = template.replace("{", "|{").replace("}", "}|").split("|")
        return "".join(self._expand(p) if p.startswith("{") else p for p in pieces)

    def _expand(self, slot: str) -> str:
        match slot:
            case "{item}":
                return self._content("items")
            case "{items}":
                return _plural(self._content("items"))
            case "{aspect}":
                return self._content("aspects")
            case "{trait}":
                return self._content("traits")
            case "{event}":
                return self._content("events")
            case "{opinion}":
                return self.rng.choice(OPINIONS)
            case "{filler}":
                return self.rng.choice(FILLERS)
            case _:
                return "".join(self.rng.choices(NAME_SYLLABLES, k=self.rng.choice((2, 3))))

    def _join(self, parts: Sequence[str]) -> str:
        ends = [self.rng.choice((". ", ". ", "! ", ", ", " ", " and ")) for _ in parts[1:]]
        return "".join(chain.from_iterable(zip(parts, [*ends, ""], strict=True)))

    def _finish(self, text: str) -> str:
        words = [self._typo(w) if self.rng.random() < TYPO_RATE else w for w in text.split(" ")]
        text = " ".join(words)
        return text[:1].upper() + text[1:] + self.rng.choice(("", "", ".", "!"))

    def _typo(self, word: str) -> str:
        if len(word) < 4:
            return word
        at = self.rng.randrange(1, len(word) - 1)
        return self.rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            )
        )


def _plural(noun: str) -> str:
    if noun.endswith("s"):
        return noun
    if noun.endswith(("sh", "ch", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
