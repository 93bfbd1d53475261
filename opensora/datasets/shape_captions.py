"""The language of the generated world: how a scene is told."""

from collections.abc import Sequence

from opensora.datasets.shape_scene import DIRECTIONS, Scene, Thing

STYLES = ("canonical", "varied", "mixed")

# The first of each is the canonical one.
_TEMPLATES = (
    "{things} over a {background} background",
    "over a {background} background, {things}",
    "{things} in front of a {background} background",
    "{things}, and behind it all is {background}",
    "the background is {background}, and {things}",
    "a video of {things_doing} over a {background} background",
)
_VERBS = ("moves", "glides", "slides", "drifts", "travels")
_WAYS = {  # straight on, and along a diagonal
    False: ("{}", "to the {}", "towards the {}"),
    True: ("{} and {side}", "diagonally {} and to the {side}", "towards the {upper} {side}"),
}
_MOTIONS = {
    "bounce sideways": ("bounces from side to side", "goes back and forth sideways"),
    "bounce up and down": ("bounces up and down", "hops up and down"),
    "spin": ("spins in place", "turns around itself"),
    "grow": ("grows larger", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "orbit": ("moves in a circle", "circles around the middle"),
    "stay": ("stays still", "does not move"),
}
_PATTERNS = {
    "plain": ("{}", "plain {}"),
    "gradient": ("{} gradient", "shaded {}"),
    "striped": ("striped {}",),
    "checkered": ("checkered {}", "chequered {}"),
    "dotted": ("dotted {}", "spotted {}"),
}
_UPRIGHT = {"up": ("up", "upwards"), "down": ("down", "downwards")}
_COLORS = {"gray": ("gray", "grey"), "purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}
_SHAPES = {"ring": ("ring", "hoop"), "circle": ("circle", "disc")}


def describe(scene: Scene, numbers: Sequence[float] | None = None) -> str:
    """Tell what is to be seen, without the camera.

    Args:
        scene: The clip.
        numbers: At least 32 numbers in [0, 1) that choose the words; None tells it in canonical words, such
            as "a red circle moves left over a blue background".
    """
    words = _Words(numbers)
    parts = [_thing(thing, words) for thing in scene.things]
    background = words(_PATTERNS[scene.pattern]).format(_word(_COLORS, scene.background, words))
    template = words(_TEMPLATES)
    doing = " and ".join(f"{subject} that {action}" for subject, action in parts)
    things = " and ".join(f"{subject} {action}" for subject, action in parts)
    return template.format(things=things, things_doing=doing, background=background)


def describe_image(scene: Scene, numbers: Sequence[float] | None = None) -> str:
    """Tell what is to be seen on one frame; arguments as for `describe`."""
    words = _Words(numbers)
    things = " and ".join(_thing(thing, words)[0] for thing in scene.things)
    background = words(_PATTERNS[scene.pattern]).format(_word(_COLORS, scene.background, words))
    return words(("{} over a {} background", "{} in front of a {} background")).format(things, background)


class _Words:
    """Chooses words by numbers, or always the first ones."""

    def __init__(self, numbers: Sequence[float] | None) -> None:
        self._numbers = None if numbers is None else iter(numbers)

    def __call__(self, options: Sequence[str]) -> str:
        return options[0] if self._numbers is None else options[int(next(self._numbers) * len(options))]


def _word(table: dict[str, Sequence[str]], name: str, words: _Words) -> str:
    return words(table.get(name, (name,)))


def _thing(thing: Thing, words: _Words) -> tuple[str, str]:
    """Return an object and what it does."""
    subject = f"a {_word(_COLORS, thing.color, words)} {_word(_SHAPES, thing.shape, words)}"
    if thing.motion not in DIRECTIONS:
        return subject, words(_MOTIONS[thing.motion])
    upright, _, side = thing.motion.partition(" ")
    way = words(_WAYS[bool(side)])
    if side:
        upper = {"up": "upper", "down": "lower"}[upright]
        way = way.format(upright, side=side, upper=upper)
    elif upright in _UPRIGHT:
        way = words(_UPRIGHT[upright])
    else:
        way = way.format(upright)
    return subject, " ".join(filter(None, (words(_VERBS), way, thing.speed)))
