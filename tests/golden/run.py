"""Compare our components with vectors that a reference implementation computed.

    python tests/golden/run.py DIR [--only PREFIX ...]

DIR holds pairs of `NAME.json` (cases) and `NAME.safetensors` (tensors). One line is printed per case. The
exit status is 0 only if no case failed and none is unsupported. A deviation is a case in which some elements
differ for a reason that is written down in a rule; every other element of the case must match.
"""

import argparse
import importlib
import json
import lzma
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

HERE = Path(__file__).parent


@dataclass
class Rule:
    """Why some elements of some cases may differ.

    Args:
        name: Short name, printed with the case.
        reason: One sentence: what the reference does, and why we do not.
        kinds: Kinds of cases that it may touch.
        excused: `(case, output, expected) -> bool array` of the output's shape (True = may differ), or None.
            Computed from the case alone, never from our result.
        check: For a rule that excuses whole outputs: a check of our own behaviour, run and printed.
    """

    name: str
    reason: str
    kinds: set[str]
    excused: Callable[[dict, str, Any], Any]
    check: Callable[[dict], str] | None = None
    marked: int = 0
    used: int = 0


@dataclass
class Result:
    """What became of one case."""

    status: str
    difference: float = 0.0
    tolerance: str = ""
    excused: int = 0
    notes: list[str] = field(default_factory=list)


def load_adapters() -> tuple[dict[str, Callable], list[Rule]]:
    """Import every `cases_*.py` beside this file and join their kinds and rules."""
    sys.path.insert(0, str(HERE))
    kinds: dict[str, Callable] = {}
    rules: list[Rule] = []
    for path in sorted(HERE.glob("cases_*.py")):
        module = importlib.import_module(path.stem)
        twice = kinds.keys() & module.KINDS.keys()
        if twice:
            raise ValueError(f"{path.name}: kinds {sorted(twice)} have an adapter already; keep one.")
        kinds |= module.KINDS
        for rule in getattr(module, "DEVIATIONS", ()):
            values = rule if isinstance(rule, dict) else vars(rule)
            rules.append(Rule(**{k: v for k, v in values.items() if k not in ("marked", "used")}))
    return kinds, rules


def read_cases(folder: Path, only: list[str]) -> Iterator[tuple[str, dict, dict[str, Tensor]]]:
    """Yield (id, case, tensors) for every case whose id or file starts with one of `only`."""
    stems = sorted(
        {path.name.split(".json")[0] for path in (*folder.glob("*.json"), *folder.glob("*.json.xz"))}
    )
    if not stems:
        raise FileNotFoundError(f"{folder}: no .json files with cases; give a folder in the golden format.")
    for path in (folder / f"{stem}.json" for stem in stems):
        document = json.loads(read_packed(path))
        cases = cases_of(document)
        chosen = [c for c in cases if not only or f"{path.stem}/{c['name']}".startswith(tuple(only))]
        tensors: dict[str, Tensor] = {}
        packed = read_packed(path.with_suffix(".safetensors")) if chosen else None
        if packed is not None:
            tensors = load(packed)
        for case in chosen:
            yield f"{path.stem}/{case['name']}", {**case, "file": path.stem}, tensors


def cases_of(document: dict) -> list[dict]:
    """Bring the three forms of documents to one list: cases, models with shapes, functions of JSON."""
    if "cases" in document:
        return document["cases"]
    if "models" in document:
        return [{"name": name, "kind": "manifest", **spec} for name, spec in document["models"].items()]
    shared = document.get("shared_args", {})
    found = []
    for function, spec in document["functions"].items():
        for i, case in enumerate(spec["cases"]):
            args = {
                k: shared[v["$ref"]] if isinstance(v, dict) and "$ref" in v else v
                for k, v in case["args"].items()
            }
            found.append({"name": f"{function}_{i}", "kind": function, **case, "args": args})
    return found


def read_packed(path: Path) -> bytes | None:
    """Read a file, or its form packed with xz; None if there is neither."""
    if path.exists():
        return path.read_bytes()
    packed = path.with_name(path.name + ".xz")
    return lzma.decompress(packed.read_bytes()) if packed.exists() else None


def tensors_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix; float16 is a packed form of float32."""
    found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in found.items()}


def run_case(case: dict, tensors: dict[str, Tensor], adapter: Callable, rules: list[Rule]) -> Result:
    """Run one case and compare every output."""
    inputs = tensors_of(tensors, f"{case['name']}/in/")
    weights = (
        tensors_of(tensors, f"weights/{case['weights']}/") if isinstance(case.get("weights"), str) else {}
    )
    expected: dict[str, Any] = dict(tensors_of(tensors, f"{case['name']}/out/"))
    expected |= {key: case[key] for key in case if key.startswith("expected")}
    if case["kind"] == "manifest":
        expected = {"shapes": case["shapes"]}
    if "out" in case:
        expected["out"] = case["out"]
    if "error" in case:
        try:
            actual = {"error": adapter(case, inputs, weights)}
        except (ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
            return Result("pass", notes=[f"raises {type(error).__name__}"])
        return Result("fail", notes=[f"the reference raises {case['error']}, ours returns {actual}"])
    actual = adapter(case, inputs, weights)
    return compare(case, actual, expected, [rule for rule in rules if case["kind"] in rule.kinds])


def compare(case: dict, actual: dict[str, Any], expected: dict[str, Any], rules: list[Rule]) -> Result:
    """Compare all outputs of a case under its tolerance and its rules."""
    atol, rtol = case.get("atol", 0.0), case.get("rtol", 0.0)
    result = Result("pass", tolerance=f"{atol:g}+{rtol:g}|x|" if atol or rtol else "exact")
    if not expected:
        return Result("fail", notes=["the case has no expected output"])
    skipped = actual.pop(
        "skipped", {}
    )  # output -> True where a branch was not computed because its scale is 1
    for name, want in expected.items():
        masks = {rule.name: rule.excused(case, name, want) for rule in rules}
        if name not in actual:
            if not any(m is not None and np.all(m) for m in masks.values()):
                result.status, result.notes = (
                    "fail",
                    [*result.notes, f"{name}: our adapter returned no such output"],
                )
                continue
            got = None
        else:
            got = actual[name]
        wrong, difference = differing(got, want, atol, rtol)
        if name in skipped:
            wrong = wrong & ~np.asarray(skipped[name])
        for rule in rules:
            mask = masks[rule.name]
            if mask is None or not np.any(mask):
                continue
            mask = (
                np.broadcast_to(np.asarray(mask), wrong.shape) if np.ndim(wrong) else np.asarray(mask).all()
            )
            rule.marked += int(np.sum(mask))
            count = int(np.sum(wrong & mask))
            if count:
                rule.used += count
                result.excused += int(np.sum(mask))
                wrong = wrong & ~mask
                if rule.name not in result.notes:
                    result.notes.append(rule.name)
                if rule.check is not None:
                    result.notes.append(f"own check: {rule.check(case)}")
        result.difference = max(
            result.difference, float(np.max(difference, initial=0.0, where=~_excused(masks, wrong)))
        )
        if np.any(wrong):
            result.status = "fail"
            result.notes.append(f"{name}: {int(np.sum(wrong))} of {np.size(wrong)} elements differ")
    if result.status == "pass" and result.excused:
        result.status = "deviation"
    return result


def differing(got: Any, want: Any, atol: float, rtol: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where two outputs differ, and by how much."""
    if isinstance(want, dict):
        keys = sorted(set(want) | set(got or {}))
        wrong = np.array(
            [not same((got or {}).get(key), want.get(key), atol, rtol) for key in keys], dtype=bool
        )
        return wrong, wrong.astype(float)
    if isinstance(want, Tensor):
        want = want.double().numpy()
    if isinstance(got, Tensor):
        got = got.detach().cpu().double().numpy()
    if not isinstance(want, np.ndarray):
        want, got = as_array(want), as_array(got)
    if got is None or np.shape(got) != np.shape(want):
        wrong = np.ones(np.shape(want), dtype=bool)
        return wrong, np.full(np.shape(want), np.inf)
    if want.dtype == object:
        wrong = np.array(
            [not same(a, b, atol, rtol) for a, b in zip(got.flat, want.flat, strict=True)], dtype=bool
        )
        return wrong.reshape(want.shape), wrong.reshape(want.shape).astype(float)
    difference = np.abs(got - want)
    difference = np.where(np.isnan(difference), np.inf, difference)
    return ~(difference <= atol + rtol * np.abs(want)), difference


def as_array(value: Any) -> np.ndarray:
    """Turn JSON into an array of its leaves where it is regular, else into one object."""
    if value is None or isinstance(value, str | dict):
        out = np.empty((), dtype=object)
        out[()] = value
        return out
    try:
        return np.array(value, dtype=object)
    except ValueError:
        out = np.empty((), dtype=object)
        out[()] = value
        return out


def same(a: Any, b: Any, atol: float, rtol: float) -> bool:
    """Compare two JSON values, numbers under the tolerance."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, atol, rtol) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], atol, rtol) for k in a)
    numbers = isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool)
    return abs(a - b) <= atol + rtol * abs(b) if numbers else a == b


def _excused(masks: dict[str, Any], wrong: np.ndarray) -> np.ndarray:
    total = np.zeros(np.shape(wrong), dtype=bool)
    for mask in masks.values():
        if mask is not None and np.ndim(wrong):
            total |= np.broadcast_to(np.asarray(mask), total.shape)
    return total


def main(argv: list[str] | None = None) -> int:
    """Run all cases, print a line for each and the totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the vectors")
    parser.add_argument("--only", nargs="*", default=[], metavar="PREFIX", help="files or cases to run")
    parser.add_argument("--traceback", action="store_true", help="print the whole trace of an error")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    kinds, rules = load_adapters()
    counts = dict.fromkeys(("pass", "deviation", "fail", "unsupported", "informational"), 0)
    for name, case, tensors in read_cases(args.folder, args.only):
        if case.get("informational"):
            result = Result("informational")
        elif case["kind"] not in kinds:
            result = Result("unsupported", notes=[f"no adapter for kind {case['kind']}"])
        else:
            try:
                result = run_case(case, tensors, kinds[case["kind"]], rules)
            except Exception as error:  # one broken case must not hide the others
                if args.traceback:
                    traceback.print_exc()
                result = Result("fail", notes=[f"{type(error).__name__}: {error}"])
        counts[result.status] += 1
        notes = "; ".join(result.notes)
        print(
            f"{name:<56} {result.difference:9.2e} {result.tolerance:>16} {result.status} excused "
            f"{result.excused} {notes}"
        )
    if not any(counts.values()):
        raise SystemExit(f"{args.folder}: no case starts with {args.only}.")
    for rule in rules:
        if rule.used:
            print(
                f"deviation {rule.name}: {rule.used} of {rule.marked} marked elements differ. {rule.reason}"
            )
        elif rule.marked:
            counts["fail"] += 1
            print(
                f"rule {rule.name} excuses nothing: {rule.marked} elements are marked and none differs; "
                f"remove it."
            )
    print(
        f"golden: {counts['pass']} passed, {counts['deviation']} deviations, "
        f"{counts['fail']} failed, {counts['unsupported']} unsupported"
    )
    return int(counts["fail"] + counts["unsupported"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
