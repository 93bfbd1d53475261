"""Refinement of prompts, against a server on this machine that speaks the protocol."""

import base64
import io
import json
import threading
import time

import pytest
import torch
from PIL import Image

from opensora.datasets.video_io import write_image
from opensora.engine.prompts import make_requests
from opensora.engine.refinement import Refiner, invent_prompts, refine_requests
from opensora.utils.config_defaults import base_configs

SETTINGS = {"model": "small", "timeout_s": 5.0, "retries": 1}
CFG = {**base_configs()["inference"], "llm": SETTINGS, "llm_refine": True}


def says(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server(language_model, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", language_model.url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("opensora.engine.refinement.time.sleep", lambda seconds: None)
    return language_model


def test_a_prompt_is_asked_for_and_comes_as_one_paragraph(server):
    server.answers = [says('"A cat sits\n on a mat." ')]
    assert Refiner(SETTINGS).refine("eine Katze") == "A cat sits on a mat."
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions" and body["model"] == "small"
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "English" in system["content"] and "eine Katze" in user["content"]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_picture_goes_along_small(server, tmp_path):
    server.answers = [says("It moves.")]
    path = write_image(torch.linspace(-1, 1, 600)[None, None].expand(3, 800, 600), tmp_path / "a.png")
    assert Refiner(SETTINGS).refine("x", str(path)) == "It moves."
    text, image = server.asked[0][1]["messages"][1]["content"]
    assert "x" in text["text"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (384, 512)


def test_every_text_is_rewritten_once_then_scored_and_cleaned(server):
    server.answers = [says("A Sea"), says("A Storm")]
    cfg = {**CFG, "prompt": ["|0|海|2|嵐"], "num_sample": 2, "aes": 7, "clean_prompts": True}
    plain = make_requests(cfg, (16, 16), 1)
    assert server.asked == []
    refined = refine_requests(plain, cfg)
    said = " the aesthetic score is excellent."
    assert [r.text for r in refined] == ["a sea" + said] * 2
    assert refined[1].later == ((2, "a storm" + said),)
    assert len(server.asked) == 2 and [r.key for r in refined] == [r.key for r in plain]


def test_prompts_of_its_own(server):
    server.answers = [says("A beach."), says("A wood.")]
    assert invent_prompts({**CFG, "random_prompts": 2}) == ["A beach.", "A wood."]
    with pytest.raises(ValueError, match="without --prompt"):
        invent_prompts({**CFG, "random_prompts": 2, "prompt": ["x"]})
    server.answers = [(500, b"")]
    with pytest.raises(ValueError, match="no prompt came from the language model"):
        invent_prompts({**CFG, "random_prompts": 1})


def drop(handler):
    handler.connection.close()


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(2000):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        threading.Event().wait(0.05)


def silence(handler):
    threading.Event().wait(100)


def redirect(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
    handler.end_headers()


WRONG_ANSWERS = [
    *(b"", b"hello", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}'),
    *(b'{"choices": 5}', b"[" * 100_000, b"\xff\xfe", says(""), says("x" * 3000), says("\ud800")),
    says("x") + b" " * (2 << 20),
]


@pytest.mark.parametrize("number", range(len(WRONG_ANSWERS)))
def test_a_wrong_answer_leaves_one_prompt_as_it_was(server, caplog, number):
    server.answers = [WRONG_ANSWERS[number], says("fine")]
    refiner = Refiner(SETTINGS)
    assert refiner.refine("a cat") == "a cat" and "the prompt stays as it was" in caplog.text
    assert refiner.refine("a cat") == "fine"


@pytest.mark.parametrize(
    ("answer", "asked"), [((500, b"x"), 2), ((429, b""), 2), ((401, b"no"), 1), (redirect, 1), (drop, 2)]
)
def test_a_failing_server_is_asked_a_few_times_and_then_no_more(server, caplog, answer, asked):
    server.answers = [answer]
    refiner = Refiner(SETTINGS)
    assert refiner.refine("a cat") == "a cat" and len(server.asked) == asked
    assert refiner.refine("a dog") == "a dog" and len(server.asked) == asked
    assert caplog.text.count("prompts stay as they are from here on") == 1 and "secret" not in caplog.text


@pytest.mark.parametrize("slow", [drip, silence])
def test_a_slow_server_does_not_hold_up_a_run(server, caplog, slow):
    server.answers = [slow]
    start = time.monotonic()
    assert Refiner({**SETTINGS, "timeout_s": 0.2, "retries": 0}).refine("a cat") == "a cat"
    assert time.monotonic() - start < 60 and "prompts stay as they are" in caplog.text


def test_an_error_that_passes_is_outlived(server):
    server.answers = [(503, b""), says("fine")]
    assert Refiner(SETTINGS).refine("a cat") == "fine"


def test_without_key_and_server_nothing_is_sent(monkeypatch, caplog):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    refiner = Refiner(SETTINGS)
    monkeypatch.setattr(refiner, "_post", None)
    assert refiner.refine("a cat") == "a cat"
    assert "a language model needs OPENAI_API_KEY" in caplog.text
    with pytest.raises(ValueError, match="no prompt came.*give --prompt instead"):
        invent_prompts({**CFG, "random_prompts": 1})


def test_a_server_of_ones_own_needs_no_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server.answers = [says("fine")]
    assert Refiner(SETTINGS).refine("a cat") == "fine" and "Authorization" not in server.headers[0]


def test_wrong_settings(monkeypatch):
    with pytest.raises(ValueError, match="use seconds above 0"):
        Refiner({**SETTINGS, "timeout_s": 0})
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc/hosts")
    with pytest.raises(ValueError, match="starts with https://"):
        Refiner(SETTINGS)
