"""`fluxrewrite kernels`, `fluxrewrite kernels profile` and `fluxrewrite verify`."""

import json

import pytest
import torch

from fluxrewrite.cli import main
from fluxrewrite.cost.devices import emulated_names, load_device
from fluxrewrite.kernel import Limit, load_kernels
from fluxrewrite.provider import Implementation
from fluxrewrite.provider.registry import implementations

SMALL = "heads=2,sequence=130,head_size=64"


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def fits(text):
    return all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_listing_has_every_kernel_and_the_limits_of_builtin(capsys):
    code, out, _ = run(capsys, "kernels")
    assert code == 0
    assert fits(out)
    text = " ".join(out.split())
    for kernel in load_kernels().values():
        assert f"{kernel.name} {kernel.summary} found as: " in text
    assert "builtin hidden <= 65536" in text
    builtin = text.split("builtin")
    assert all(
        "dtype in {float32" not in part.split("reference")[0] for part in builtin[1:] if "table_dtype" not in part
    )


def test_listing_joins_versions_with_equal_limits(capsys, provide):
    launch = implementations("builtin")["rope"].launch
    old, new = (Implementation(launch, (Limit("sequence", maximum=n, source="page 7"),), "m:f") for n in (512, 9999))
    provide({"1.0": {"rope": old}, "1.1": {"rope": new}, "1.2": {"rope": new, "qkv": new}}, ("1.0", "1.1", "1.2"))
    code, out, _ = run(capsys, "kernels")
    text = " ".join(out.split())
    assert code == 0
    assert fits(out)
    assert "mine 1.0 sequence <= 512" in text
    assert "mine 1.1-1.2 sequence <= 9999" in text
    assert "mine 1.2 sequence <= 9999" in text.split("qkv")[1]
    rows = [r for r in json.loads(run(capsys, "kernels", "--format", "json")[1]) if r["provider"] == "mine"]
    assert [(r["kernel"], r["version"]) for r in rows] == [
        ("qkv", "1.2"),
        ("rope", "1.0"),
        ("rope", "1.1"),
        ("rope", "1.2"),
    ]
    assert rows[1]["limits"][0] == {
        "text": "sequence <= 512",
        "dim": "sequence",
        "maximum": 512,
        "multiple_of": None,
        "one_of": None,
        "source": "page 7",
        "above": None,
        "dtypes": [],
    }


def test_kernel_without_further_limits_says_so(capsys, provide):
    provide({"rope": lambda *a: None})
    assert "mine no further limit" in " ".join(run(capsys, "kernels")[1].split())


@pytest.mark.parametrize("name", ["rope", "qkv", "attention", "norm_rope_attention"])
def test_profile(capsys, name):
    shape = "sequence=130,hidden=256,query=128" if name == "qkv" else SMALL
    code, out, _ = run(capsys, "kernels", "profile", name, "--shape", shape, "--cores", "2")
    assert code == 0
    assert fits(out)
    assert "no hardware was used" in out
    assert f"{name} of builtin on trn2, 2 cores, bfloat16" in out
    for word in ("Modelled latency", "Bound by", "TFLOP/s of 157.3", "GB/s of 724", "gpsimd", "sbuf", "instruction"):
        assert word in out


def test_profile_options(capsys, tmp_path):
    trace = tmp_path / "t.json"
    args = ("kernels", "profile", "rope", "--shape", SMALL, "--device", "trn1", "--dtype", "fp32", "--trace", trace)
    code, out, _ = run(capsys, *args, "--top", 1)
    assert code == 0
    assert "on trn1, 1 core, float32" in out
    assert out.split("instruction  ")[1].count("\n0 ") == 1
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"tensor_tensor", "dma_copy"} <= {e["name"] for e in events}
    assert str(trace) in "".join(out.split())
    assert "instruction  count" not in run(capsys, *args, "--top", 0)[1]


def test_profile_of_two_launches_shows_both_one_after_the_other(capsys, provide, tmp_path):
    rope = implementations("builtin")["rope"].launch
    provide({"rope": lambda execution, *a: [rope(execution, *a), rope(execution, *a)]})
    args = ("kernels", "profile", "rope", "--shape", SMALL, "--trace", tmp_path / "t.json")
    code, out, _ = run(capsys, *args, "--provider", "mine")
    assert code == 0
    assert "Launch 2 of 2" in out
    both = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert run(capsys, *args)[0] == 0
    one = json.loads((tmp_path / "t.json").read_text())["traceEvents"]

    def times(events):
        return [e["ts"] for e in events if "ts" in e]

    assert len(times(both)) == 2 * len(times(one))
    assert max(times(both)) > 1.9 * max(times(one))


def test_devices_are_those_of_the_emulator():
    from fluxrewrite.kernels.emulator.specs import DEVICES

    assert set(emulated_names()) == set(DEVICES)
    assert {load_device(name).emulated_as for name in emulated_names()} == set(DEVICES)


def test_a_profile_of_ones_own_is_modelled_as_the_device_that_it_names(capsys, tmp_path):
    content = json.loads(load_device("trn3").model_dump_json(by_alias=True))
    (tmp_path / "acme.json").write_text(json.dumps({**content, "name": "acme1"}))
    args = ("kernels", "profile", "rope", "--shape", SMALL, "--device")
    mine, shipped, other = (run(capsys, *args, d) for d in (tmp_path / "acme.json", "trn3", "trn2"))
    assert mine == shipped != other
    assert mine[0] == other[0] == 0


BAD = [
    (("kernels", "profile", "flash"), "unknown kernel 'flash'", "attention"),
    (("kernels", "profile", "rope", "--shape", "head=3"), "'head'", "known: batch, sequence"),
    (("kernels", "profile", "rope", "--shape", "heads=x"), "heads=x", "whole number"),
    (("kernels", "profile", "rope", "--device", "trn9"), "'trn9'", "trn2"),
    (("kernels", "profile", "rope", "--device", "cpu"), "no model of kernel calls on cpu", "models trn1, trn2, trn3"),
    (("kernels", "profile", "rope", "--device", "trn1", "--cores", "2"), "2 cores on trn1", "LNC1"),
    (("kernels", "profile", "rope", "--cores", "3"), "--cores 3", "1 or 2"),
    (("kernels", "profile", "rope", "--top", "-1"), "--top -1", "0 or more"),
    (("kernels", "profile", "rope", "--dtype", "int8"), "'int8'", "bf16"),
    (("kernels", "profile", "rope", "--provider", "nobody"), "'nobody'", "builtin"),
    (("kernels", "profile", "rope", "--provider", "reference"), "'reference'", "builtin"),
    (("kernels", "profile", "attention", "--shape", "head_size=256"), "head_size 256", "<= 128"),
    (("kernels", "profile", "rope", "--trace", "no/such/t.json"), "no/such", "does not exist"),
    (("kernels", "profile"), "Missing argument", "--help"),
    (("kernels", "--format", "xml"), "'xml'", "json"),
    (("kernels", "prof"), "'prof'", "--help"),
    (("verify",), "nothing to verify", "--kernels"),
    (("verify", "--kernels", "--simulator", "nki"), "--simulator nki", "--simulator emulator"),
    (("verify", "--kernels", "--simulator", "hw"), "'hw'", "emulator"),
    (("verify", "--kernels", "--filter", "softcap"), "'softcap'", "rope bf16 sequence=1"),
    (("verify", "--kernels", "--provider", "nobody"), "'nobody'", "builtin"),
    (("verify", "--kernels", "--provider", "reference"), "'reference'", "builtin"),
    (("verify", "--kernels", "--seed", "-1"), "--seed -1", "must be 0 or more"),
    (("verify", "--kernels", "flash"), "no kernel 'flash'", "attention, norm_rope_attention, qkv, rope"),
    (("verify", "--kernels", "qkv:triple"), "no kernel 'qkv:triple'", "fluxrewrite verify MODEL"),
    (("verify", "--kernels", ","), "--kernels ','", "attention"),
    (("verify", "--kernels", "--steps", "2"), "--steps needs a model", "fluxrewrite verify MODEL"),
    (("verify", "--kernels", "rope", "--image-tokens", "2"), "--image-tokens needs a model", "verify MODEL"),
]


@pytest.mark.parametrize(("args", "wrong", "remedy"), BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else "")
def test_bad_input_is_one_line_and_exit_code_2(capsys, args, wrong, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fluxrewrite.kernels.harness.cases.has_nki", lambda: False)
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert wrong in err
    assert remedy in err


def test_kernel_of_a_third_party_without_a_sample(capsys, provide, monkeypatch):
    provide({"softcap": lambda *a: None})
    code, _, err = run(capsys, "kernels", "profile", "softcap", "--provider", "mine")
    assert code == 2
    assert "no sample arguments for kernel 'softcap'" in err


def test_verify_quick_passes(capsys):
    threads = torch.get_num_threads()
    code, out, _ = run(capsys, "verify", "--kernels", "--quick", "--simulator", "emulator")
    assert code == 0
    assert fits(out)
    assert torch.get_num_threads() == threads
    for kernel in load_kernels():
        for dtype in ("bf16", "fp32"):
            assert any(line.split()[:2] == [kernel, dtype] for line in out.splitlines())
    assert "seed 0; 0 outside the provider's limits" in " ".join(out.split())


@pytest.mark.parametrize("words", [["rope"], ["qkv,rope"], ["--quick"]], ids=" ".join)
def test_verify_of_some_kernels_or_of_all(capsys, words, tmp_path):
    narrow = ("--filter", "bf16 sequence=1 ") if words == ["--quick"] else ("--filter", "sequence=1 heads=1 ")
    path = tmp_path / "out.json"
    code, out, _ = run(
        capsys, "verify", "--kernels", *words, *narrow, "--simulator", "emulator", "--format", "json", "-o", path
    )
    assert (code, out) == (0, "")
    found = {c["kernel"] for c in json.loads(path.read_text())["cases"]}
    assert found == ({"qkv", "rope"} if words == ["--quick"] else {"rope"})


def test_verify_fails_and_names_the_worst_case(capsys, provide):
    rope = implementations("builtin")["rope"].launch

    def wrong(execution, x, *more):
        out = rope(execution, x, *more)
        if x.shape[2] == 130:
            out[..., 5] += 1.0
        return out

    provide({"rope": wrong})
    args = ("verify", "--kernels", "--quick", "--provider", "mine", "--simulator", "emulator", "--filter", "rope fp32")
    code, out, err = run(capsys, *args)
    assert code == 1
    assert "FAILED" in out
    assert "worst: rope fp32 sequence=130 heads=6" in err
    assert "(limit 1e-05)" in err
    code, out, err = run(capsys, *args, "--format", "json")
    record = json.loads(out)
    assert code == 1
    failed = [c["case"] for c in record["cases"] if not c["passed"]]
    assert failed
    assert all("sequence=130" in name and "sequence_dim=2" in name for name in failed)
    assert record["provider"] == "mine"


def test_verify_where_every_case_is_outside_is_no_success(capsys, provide):
    launch = implementations("builtin")["rope"].launch
    provide({"rope": Implementation(launch, (Limit("sequence", above=9999),), "")})
    args = ("verify", "--kernels", "--quick", "--provider", "mine", "--simulator", "emulator")
    code, _, err = run(capsys, *args)
    assert code == 1
    assert "no case ran" in err


def test_json_of_a_case_without_a_result(capsys, provide):
    provide({"rope": lambda execution, x, *more: x * float("nan")})
    args = ("verify", "--kernels", "--filter", "rope fp32 sequence=1 heads=1 head_size=64 interleaved=1")
    code, out, err = run(capsys, *args, "--provider", "mine", "--simulator", "emulator", "--format", "json")
    assert code == 1
    assert "NaN" not in out
    (case,) = json.loads(out)["cases"]
    assert case["error"] is None
    assert "not finite" in err
