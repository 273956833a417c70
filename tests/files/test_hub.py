"""Fetching checkpoints from a stand-in of the Hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st

import svdcut.files.hub
from kinds import KINDS
from svdcut.errors import CheckpointError, HubError
from svdcut.files.hub import fetch_snapshot, is_local

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SMALL = [
    *("README.md", "LICENSE", "config.json", "generation_config.json", "modeling_toy.py"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer.model", "merges.txt"),
]
UNWANTED = [
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "training_args.bin"),
    *("consolidated.safetensors", "consolidated.json", "original/params.json", "onnx/config.json"),
    *("adapter/config.json", "a/b.json", "additional/x.json", "additional_chat_templates2/x.jinja"),
    *("model.fp16.safetensors", "trainer_state.json", ".gitattributes", "preview.png"),
]
TEMPLATE = "additional_chat_templates/tool_use.jinja"


pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def folder(tmp_path):
    """Build a repository's folder from file names; the content is the name, unless given."""

    def build(*names, name="repo", **contents):
        path = tmp_path / name
        for file in names:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(contents.get(file.partition(".")[0], f"{file} of {name}"))
        return path

    return build


def index_of(*shards):
    return json.dumps({"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}})


def sharded(folder, *shards, name="repo", present=SHARDS):
    path = folder(*present, "config.json", name=name)
    (path / INDEX).write_text(index_of(*shards))
    return path


def files_in(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def test_single_file_and_only_wanted_files(hub, folder):
    repo = folder("model.safetensors", *SMALL, *UNWANTED, TEMPLATE)
    commit = hub.add("org/toy", repo)

    snapshot = fetch_snapshot("org/toy")

    assert snapshot.name == commit
    wanted = sorted([*SMALL, TEMPLATE, "model.safetensors"])
    assert hub.files_fetched() == wanted
    assert files_in(snapshot) == wanted
    assert all((snapshot / name).read_bytes() == (repo / name).read_bytes() for name in wanted)


def test_requests_are_one_lookup_one_listing_and_two_for_each_file(hub, folder):
    commit = hub.add("org/toy", folder("model.safetensors", "config.json"))
    fetch_snapshot("org/toy")
    api = "/api/models/org/toy"
    files = [f"/org/toy/resolve/{commit}/{name}" for name in ("config.json", "model.safetensors")]
    assert hub.requests == [
        ("GET", f"{api}/revision/main"),
        ("GET", f"{api}/tree/{commit}"),
        *((method, file) for file in files for method in ("HEAD", "GET")),
    ]


def test_sharded_takes_what_the_index_names(hub, folder):
    repo = sharded(folder, *SHARDS, SHARDS[0], present=[*SHARDS, "model-stale.safetensors"])
    hub.add("org/toy", repo)
    snapshot = fetch_snapshot("org/toy")
    assert files_in(snapshot) == hub.files_fetched() == ["config.json", *SHARDS, INDEX]


def test_folders_of_modules(hub, folder):
    modules = '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../*"}]'
    names = ["modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    names += ["config.json", "model.safetensors", "qformer_tokenizer/vocab.txt"]
    others = ["2_Dense/pytorch_model.bin", "3_Old/config.json", "onnx/model.onnx"]
    hub.add("org/toy", folder(*names, *others, modules=modules))
    assert files_in(fetch_snapshot("org/toy")) == hub.files_fetched() == sorted(names)


def test_a_cut_of_two_snapshots(hub, tmp_path):
    """Their files are links into the cache, and so are those of the folders in them."""
    pair = KINDS["modules"].build(tmp_path)
    hub.add("org/base", pair.base)
    hub.add("org/tuned", pair.finetuned)
    out = tmp_path / "out"
    svdcut.truncate("org/base", "org/tuned", out, rank=2)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found >= {"config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_adapter_without_model(hub, folder):
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    hub.add("org/toy", folder(*names, "adapter_model.bin"))
    assert files_in(fetch_snapshot("org/toy")) == names


def test_second_fetch_asks_only_for_the_commit(hub, folder):
    hub.add("org/toy", sharded(folder, *SHARDS))
    first = fetch_snapshot("org/toy")
    hub.requests.clear()
    assert fetch_snapshot("org/toy") == first
    assert hub.requests == [("GET", "/api/models/org/toy/revision/main")]


@pytest.mark.parametrize("revision", ["dev", "v1.0", "refs/pr/3", "commit"])
def test_revision_resolves_to_its_commit(hub, folder, revision):
    hub.add("org/toy", folder("model.safetensors", name="other"))
    commit = hub.add("org/toy", folder("model.safetensors", "config.json"), revision)
    snapshot = fetch_snapshot(f"org/toy@{commit if revision == 'commit' else revision}")
    assert snapshot.name == commit
    assert (snapshot / "model.safetensors").read_text() == "model.safetensors of repo"


def test_weights_are_pinned_to_the_commit_of_the_index(hub, folder, monkeypatch):
    commit = hub.add("org/toy", sharded(folder, *SHARDS))
    newer = sharded(folder, "model.safetensors", name="newer", present=["model.safetensors"])
    weight_files = svdcut.files.hub._weight_files

    def push_in_between(*args):
        hub.add("org/toy", newer)
        return weight_files(*args)

    monkeypatch.setattr(svdcut.files.hub, "_weight_files", push_in_between)
    snapshot = fetch_snapshot("org/toy")
    assert snapshot.name == commit
    assert (snapshot / SHARDS[1]).read_text() == f"{SHARDS[1]} of repo"


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_bars_only_on_a_terminal_and_not_when_quiet(hub, folder, capfd, quiet, terminal):
    hub.add("org/toy", folder("model.safetensors", "config.json"))
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stderr, "isatty", lambda: terminal, raising=False)
        patch.setattr(sys, "stderr", stderr)
        fetch_snapshot("org/toy", quiet=quiet)
    assert bool(stderr.getvalue()) is (terminal and not quiet)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("with_listing", [True, False])
@pytest.mark.parametrize("revision", ["", "@v1", "@commit"])
def test_offline_from_the_cache(hub, folder, go_offline, with_listing, revision):
    commit = hub.add("org/toy", sharded(folder, *SHARDS), "main", "v1")
    source = "org/toy" + revision.replace("commit", commit)
    online = fetch_snapshot(source)
    hub.requests.clear()
    go_offline(with_listing=with_listing)
    assert fetch_snapshot(source) == online
    assert hub.requests == []


def test_offline_and_not_cached(hub, folder, go_offline):
    hub.add("org/toy", folder("model.safetensors"))
    go_offline()
    with pytest.raises(HubError, match=r"org/toy@main is not in the cache, .*OFFLINE") as caught:
        fetch_snapshot("org/toy")
    assert "hf download org/toy --revision main" in caught.value.hint
    assert hub.requests == []


@pytest.mark.parametrize("with_listing", [True, False])
@pytest.mark.parametrize("lost", [SHARDS[1], "model.safetensors"])
def test_offline_names_what_the_cache_lacks(hub, folder, go_offline, lost, with_listing):
    repo = folder("model.safetensors") if lost not in SHARDS else sharded(folder, *SHARDS)
    hub.add("org/toy", repo)
    (fetch_snapshot("org/toy") / lost).unlink()
    go_offline(with_listing=with_listing)
    with pytest.raises(HubError, match="org/toy@main is not complete in the cache") as caught:
        fetch_snapshot("org/toy")
    assert f"({lost})" in caught.value.what
    assert "HF_HUB_OFFLINE" in caught.value.what


def test_environment_variables_and_cheap_import(hub, folder, tmp_path):
    """A whole process, set up as users do, that must not load torch either."""
    hub.add("org/toy", sharded(folder, *SHARDS))
    script = """
import sys, svdcut.files.hub
assert "huggingface_hub" not in sys.modules
assert not svdcut.files.hub.is_local("org/toy")
assert "huggingface_hub" not in sys.modules
print(svdcut.files.hub.fetch_snapshot("org/toy"))
assert "torch" not in sys.modules
"""
    source = str(Path(svdcut.files.hub.__file__).parents[2])
    env = os.environ | {
        **{"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": source},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
    outputs = []
    for offline in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env=env | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, "")
        outputs.append(run.stdout)
        requests = len(hub.requests)
    assert outputs[0] == outputs[1]
    assert len(hub.requests) == requests > 0


@pytest.mark.parametrize("status", [401, 404])
def test_unknown_repository(hub, status):
    hub.missing_status = status
    with pytest.raises(HubError, match="org/typo was not found") as caught:
        fetch_snapshot("org/typo@v1")
    assert "hf auth login" in caught.value.hint
    assert "'./org/typo'" in caught.value.hint


def test_gated_repository(hub, folder):
    hub.add("org/toy", folder("model.safetensors", "config.json"), gated=True)
    with pytest.raises(HubError, match="org/toy@main: it is gated") as caught:
        fetch_snapshot("org/toy")
    assert "hf auth login" in caught.value.hint


def test_unknown_revision(hub, folder):
    hub.add("org/toy", folder("model.safetensors"))
    with pytest.raises(HubError, match=r"org/toy has no revision 'refs/pr/9'") as caught:
        fetch_snapshot("org/toy@refs/pr/9")
    assert "branch, tag or commit" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "found", "hint"),
    [
        (500, "HTTP 500", "check the connection and HF_ENDPOINT"),
        (403, "refuses access to org/toy@main: HTTP 403", "hf auth login"),
        (404, "org/toy was not found", "check the name"),
    ],
)
def test_http_errors(hub, folder, status, found, hint):
    hub.add("org/toy", folder("model.safetensors"))
    hub.fail_with = status
    with pytest.raises(HubError, match=found) as caught:
        fetch_snapshot("org/toy")
    assert "org/toy" in caught.value.what
    assert hint in caught.value.hint


def test_server_down(hub):
    hub.stop()
    with pytest.raises(HubError, match=r"org/toy@main is not in the cache; .*refused") as caught:
        fetch_snapshot("org/toy")
    assert "check the connection" in caught.value.hint
    assert str(caught.value).count("\n") == 1


def test_server_down_but_cached(hub, folder):
    hub.add("org/toy", sharded(folder, *SHARDS))
    online = fetch_snapshot("org/toy")
    hub.stop()
    assert fetch_snapshot("org/toy") == online


def test_server_down_and_cache_not_complete(hub, folder):
    hub.add("org/toy", sharded(folder, *SHARDS))
    (fetch_snapshot("org/toy") / "config.json").unlink()
    hub.stop()
    what = r"org/toy@main is not complete in the cache \(config\.json\); download failed: .*refused"
    with pytest.raises(HubError, match=what):
        fetch_snapshot("org/toy")


def test_endpoint_that_is_no_hub(hub):
    hub.fail_with = 200
    with pytest.raises(HubError, match="org/toy@main is not in the cache") as caught:
        fetch_snapshot("org/toy")
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("error", [HTTPError("cut"), RuntimeError("cut"), OSError(28, "cut")])
def test_errors_while_downloading(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(HubError, match=r"org/toy@v1 is not in the cache; download failed: .*cut"):
        fetch_snapshot("org/toy@v1")


def test_cache_that_cannot_be_written(hub, folder, tmp_path):
    hub.add("org/toy", folder("model.safetensors", "config.json"))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(HubError, match=rf"org/toy@main .*'{tmp_path}/cache"):
        fetch_snapshot("org/toy")


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ('{"architectures": ["BertForMaskedLM"]}', "BertForMaskedLM"),
        ('{"architectures": ["os; rm -rf"]}', "AutoModel"),
        ("{}", "AutoModel"),
    ],
)
def test_only_pickled_weights(hub, folder, caplog, config, model):
    commit = hub.add("org/toy", folder("config.json", "pytorch_model.bin", config=config))
    with pytest.raises(CheckpointError, match=r"no safetensors.*pytorch_model\.bin") as caught:
        fetch_snapshot("org/toy")
    assert "org/toy" in caught.value.what
    code = caught.value.hint.partition('python -c "')[2].removesuffix('"')
    compile(code, "hint", "exec")
    assert f"import {model} as M" in code
    assert f"M.from_pretrained('org/toy', revision='{commit}').save_pretrained(" in code
    assert hub.files_fetched() == ["config.json"]
    assert caplog.text == ""


def test_no_weights_at_all(hub, folder):
    hub.add("org/toy", folder("README.md", "training_args.bin", "old/pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"no safetensors weights$") as caught:
        fetch_snapshot("org/toy")
    assert caught.value.hint is None


def test_index_names_a_shard_that_is_not_there(hub, folder):
    hub.add("org/toy", sharded(folder, *SHARDS, present=SHARDS[:1]))
    with pytest.raises(CheckpointError, match=f"org/toy.*'{SHARDS[1]}'.* not there"):
        fetch_snapshot("org/toy")


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/x.safetensors", "../x.safetensors", "sub/x.safetensors", "..\\x.safetensors"),
        *("sub\\x.safetensors", "C:\\x.safetensors"),
        *(
            "*.safetensors",
            "[a-z]*.safetensors",
            "?.safetensors",
            "x..safetensors",
            "\n.safetensors",
        ),
        *("pytorch_model.bin", ".safetensors", "", "..", 7, None, ["x.safetensors"], {}),
    ],
)
def test_hostile_shard_name(hub, folder, name):
    hub.add("org/toy", sharded(folder, SHARDS[0], name))
    with pytest.raises(CheckpointError, match=f"org--toy.*{INDEX}") as caught:
        fetch_snapshot("org/toy")
    assert "\n" not in caught.value.what
    assert not [file for file in hub.files_fetched() if file.endswith(("safetensors", ".bin"))]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "7", '{"weight_map": {}}', '{"weight_map": ["x"]}', '{"weight_map": 1}'),
        *("\x80", "[" * 100_000),
    ],
)
def test_index_that_is_none(hub, folder, content):
    repo = folder("model.safetensors")
    (repo / INDEX).write_bytes(content.encode("latin-1"))
    hub.add("org/toy", repo)
    with pytest.raises(CheckpointError, match=f"org--toy.*{INDEX}"):
        fetch_snapshot("org/toy")


LOCAL = [
    *("/", "/org/name", "./org/name", "../org/name", "~/org/name", "~", ".", "..", ".org/name"),
    *("org/name/", "name", "name/", "org/sub/name", "org//name", "", " ", "org name/x", "é/name"),
    *("org/name.safetensors", "org/name@v1.safetensors", "model.safetensors", "C:/org", "C:\\org"),
    *("https://hub/org/name", "hf://org/name", "org--x/name", "org/na..me", "org/name.git"),
    *("-org/name", "org/-name", "org/name.", "org/name-", "org/" + "n" * 97, "org/name\n", "@v1"),
    *(
        "org/name@",
        "org/name@/v1",
        "org/name@v1/",
        "org/name@../v1",
        "org/name@a b",
        "org/name@a//b",
    ),
    *("org/name@a^", "org/name@a:b", "org/name@*", "org/name@a\\b", "org/name@\x00", "x" * 5000),
]
REMOTE = [
    *("org/name", "Org-1/na_me.v2", "o/n", "_o/n_", "org/" + "n" * 96, "org/name@main"),
    *("org/name@refs/pr/3", "org/name@v1.0", "org/name@feature--x", "org/name@a@b"),
    *("org/name@0123456789abcdef0123456789abcdef01234567", "org/model.bin"),
]


@pytest.mark.parametrize("source", LOCAL)
def test_local_by_shape(source):
    assert is_local(source)


@pytest.mark.parametrize("source", REMOTE)
def test_remote_by_shape(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local(source)


@pytest.mark.parametrize("source", ["org/name", "org/name@v1"])
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_local(tmp_path, monkeypatch, source, make):
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    make(Path(source))
    assert is_local(source)


def test_local_paths_never_reach_the_hub(hub, folder, tmp_path, monkeypatch):
    hub.add("org/name", folder("model.safetensors"))
    monkeypatch.chdir(tmp_path)
    assert not is_local("org/name")
    Path("org/name").mkdir(parents=True)
    for source in ["org/name", *LOCAL]:
        if not is_local(source):
            fetch_snapshot(source)
        elif source != "org/name" and not source.endswith(".safetensors"):
            with pytest.raises(HubError, match="is not a Hub id"):
                fetch_snapshot(source)
    assert hub.requests == []


def test_not_a_hub_id():
    with pytest.raises(HubError, match=r"'\./toy' is not a Hub id") as caught:
        fetch_snapshot("./toy")
    assert "org/name@revision" in caught.value.hint


@settings(deadline=None)
@given(st.from_regex(r"[aB0é._\-]{1,8}/[aB0é._\-]{1,8}(\.git)?", fullmatch=True))
def test_shape_agrees_with_huggingface_hub(source):
    try:
        validate_repo_id(source)
    except HFValidationError:
        assert is_local(source)
    else:
        assert not is_local(source)
