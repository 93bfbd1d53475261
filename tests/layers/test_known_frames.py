"""Known frames: numbers, places, classes, and laying references into a clip."""

import pytest
import torch

from opensora.layers.known_frames import CLASSES, KnownFrames, chain, given_frames, lay, of_class


def test_numbers_and_their_defaults():
    assert KnownFrames.parse("0") == KnownFrames() == KnownFrames.parse("0,0,0,0,1,0.0")
    assert KnownFrames.parse("1, 2,-3,-4,5,0.25") == KnownFrames(1, 2, -3, -4, 5, 0.25)
    assert str(KnownFrames.parse("0,1")) == "0,1,0,0,1,0.0"


@pytest.mark.parametrize("text", ["", "a", "0,,1", "0,0,1.5", "0,1,2,3,4,5,6", "0,0,0,0,1,x"])
def test_no_numbers(text):
    with pytest.raises(ValueError, match="give one to six numbers with commas"):
        KnownFrames.parse(text)


@pytest.mark.parametrize(
    "text", ["-1", "0,-1", "0,0,0,0,-1", "0,0,0,0,1,1.01", "0,0,0,0,1,nan", "0,0,0,0,1,-0.1"]
)
def test_numbers_out_of_range(text):
    with pytest.raises(ValueError, match="the edit ratio .the sixth number. lies in"):
        KnownFrames.parse(text)


def test_places():
    assert KnownFrames(0, 0, -5, 0, 5).span(20, 15) == (15, 0, 5)
    assert KnownFrames(0, 0, 0, -1, 1).span(1, 15) == (0, 14, 1)
    assert KnownFrames(0, 0, 0, 12, 9).span(20, 15) == (0, 12, 3)  # the clip ends
    assert KnownFrames(0, 0, 3, 0, 9).span(5, 15) == (3, 0, 2)  # the reference ends
    assert KnownFrames(0, 0, 0, 15, 1).span(5, 15)[2] == 0
    assert KnownFrames(0, 0, 3, 7, 5).span(15, 15, align=5) == (5, 5, 5)
    for wrong in (KnownFrames(source=5), KnownFrames(source=-6), KnownFrames(target=-16)):
        with pytest.raises(ValueError, match="the reference has 5 latent frames, the clip 15"):
            wrong.span(5, 15)


# Classes, in the table of the reference: latent frames of 1 and 3 clips, with one and two references.
TABLE = {
    "none": ({}, {}),
    "i2v_head": ({(0, 0): (0, 0)}, {(0, 0): (0, 0)}),
    "i2v_tail": ({(0, 9): (0, 6)}, {(2, 9): (0, 6)}),
    "i2v_loop": ({(0, 0): (0, 0), (0, 9): (0, 6)}, {(0, 0): (0, 0), (2, 9): (0, 6)}),
    "v2v_head": ({(0, i): (0, i) for i in range(3)}, {(0, i): (0, i) for i in range(3)}),
    "v2v_tail": ({(0, 7 + i): (0, 4 + i) for i in range(3)}, {(2, 7 + i): (0, 4 + i) for i in range(3)}),
}


def places(name, loops, references):
    """Return {(loop, target): (reference, source)}."""
    found = {}
    for entry in of_class(name, 3, loops, references):
        source, target, length = entry.span(7, 10)
        found |= {(entry.loop, target + i): (entry.reference, source + i) for i in range(length)}
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    one, three = TABLE[name]
    assert places(name, 1, 1) == one and places(name, 3, 1) == three
    second = {"i2v_loop": {(0, 0): (0, 0), (0, 9): (1, 0)}}
    assert places(name, 1, 2) == (second[name] if name in second else one)
    if name in ("i2v_tail", "i2v_loop"):
        assert places(name, 3, 2)[2, 9] == (1, 0)
    with pytest.raises(ValueError, match="cond_type='i2v': use None or one of none, i2v_head"):
        of_class("i2v", 1)


def test_a_clip_as_its_own_reference():
    assert given_frames(of_class("v2v_tail", 3), 7).int().tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert given_frames([KnownFrames(source=2, target=2, length=2)], 5).int().tolist() == [0, 0, 1, 1, 0]


def test_laying_frames_into_a_clip():
    z = torch.randn(2, 6, 1, 1)
    a, b = torch.randn(2, 1, 1, 1), torch.randn(2, 4, 1, 1)
    before = z.clone()
    out, mask = lay([KnownFrames(), KnownFrames(0, 1, -2, -2, 2, 0.5), KnownFrames(1, 0, 0, 3)], [a, b], z)
    assert torch.equal(z, before) and mask.tolist() == [0, 1, 1, 1, 0.5, 0.5]
    assert torch.equal(out, torch.cat((a, before[:, 1:4], b[:, 2:]), dim=1))
    out, mask = lay([KnownFrames(), KnownFrames(0, 1, 1, 0, 2, 1)], [a, b], z)  # later ones lie above
    assert mask.tolist() == [1, 1, 1, 1, 1, 1] and torch.equal(out[:, :2], b[:, 1:3])
    with pytest.raises(ValueError, match="it names reference 2, and there are 2, numbered from 0"):
        lay([KnownFrames(reference=2)], [a, b], z)


def test_a_chain_takes_the_last_frames_over():
    clip = torch.randn(2, 6, 1, 1)
    out, mask = lay([chain(3, 0, 2, 0.25)], [clip], torch.zeros(2, 6, 1, 1), loop=3)
    assert torch.equal(out[:, :2], clip[:, -2:]) and mask.tolist() == [0.25, 0.25, 1, 1, 1, 1]
