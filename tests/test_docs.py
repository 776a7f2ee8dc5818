"""
Tests the site: it covers the whole package, its commands parse, its links and imports exist, the messages in
docs/troubleshooting.md are the package's, and docs/extending.md runs.
"""

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from argparse import Namespace
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt

from region_learner import RegionLearnerConfig, RegionLearnerVideoConfig
from region_learner.cli import app, main
from region_learner.cli.evaluation import _choose_protocol
from region_learner.cli.options import mapping, options_of
from region_learner.cli.train_help import SHORT_NAMES
from region_learner.cli.training import _full_name
from region_learner.configuration_region_learner import LOSSES, REGION_FORMS, RegionOptions
from region_learner.corpora import list_corpora, registry
from region_learner.evaluation import EVALUATIONS, PROTOCOLS
from region_learner.loss_region_learner import _REGISTERED
from region_learner.training import parse_stages
from region_learner.training.arguments import FORMS
from region_learner.training.parsing import _NAMES
from region_learner.training.recipes import list_recipes

from .conftest import ROOT
from .search_toys import make_video, save_checkpoint

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [ROOT / "README.md", *PAGES]
PACKAGE = ROOT / "src" / "region_learner"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tokens_of(path: Path) -> list:
    return MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))


def inline_of(path: Path) -> list:
    return [child for token in tokens_of(path) for child in token.children or ()]


def blocks_of(path: Path, *languages: str) -> list[str]:
    return [token.content for token in tokens_of(path) if token.type == "fence" and token.info in languages]


def named_blocks(path: Path) -> dict[str, str]:
    """Returns the blocks of a page that are files, by name: their first line is `# NAME.py` or `# NAME.yaml`."""
    blocks = blocks_of(path, "python", "yaml")
    return {found[1]: block for block in blocks if (found := re.match(r"# (\w+\.(?:py|yaml))\n", block))}


# The site is complete


def commands(group=None, path: str = "") -> dict:
    """Returns the commands by their names, such as "corpus list"."""
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        found |= commands(command, f"{path}{name} ") if hasattr(command, "commands") else {path + name: command}
    return found


def test_the_site_covers_the_whole_package():
    site = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(FORMS) == set(REGION_FORMS)  # the choices of --region-form
    for name in (*list_corpora(), *list_recipes(), *PROTOCOLS, *LOSSES, *REGION_FORMS, *EVALUATIONS):
        assert re.search(rf"^#+ {name}$|`{name}`", site, re.MULTILINE), name
    for name in commands():
        assert re.search(rf"region-learner {name}\b", site), name


# Phrases of the first version that readers did not understand.
UNCLEAR = re.compile(
    r"(?<![a-z])(?:is|are)[ _]no[ _](?!more|longer|less|fewer|earlier|later)|bit by bit|authors' code where"
    r"|training one can|a few regions a frame|part a clip as|are no fillers|could not be had|is through\b"
    r"|whole or not there|never are there|less that of|take a bad way|of the moving averages\b"
)
THERE_IS_NO = re.compile(r"there[ _](?:is|are)[ _]no[ _]", re.IGNORECASE)


def test_no_unclear_phrases():
    folders = ("src", "tests", "docs", "experiments", "benchmarks", "examples", "model_cards")
    files = [
        path
        for folder in folders
        for kind in ("py", "md", "yaml", "jinja")
        for path in (ROOT / folder).rglob(f"*.{kind}")
    ]
    found = {}
    for path in [*files, *ROOT.glob("*.md"), *ROOT.glob("examples/*.ipynb")]:
        if path == Path(__file__) or "node_modules" in path.parts:
            continue
        text = " ".join(path.read_text(encoding="utf-8").split())
        if match := UNCLEAR.search(THERE_IS_NO.sub("", text)):
            found[name_of(path)] = text[max(0, match.start() - 60) : match.end() + 60]
    assert found == {}


def test_every_page_is_in_the_navigation():
    def files(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from [value] if isinstance(value, str) else files(value)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(files(site["nav"])) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


PUBLIC = ["", ".corpora", ".conversion", ".evaluation", ".search", ".training", ".visualization"]
DOCUMENTED = [name for path in PAGES for name in re.findall(r"^::: ([\w.]+)", path.read_text("utf-8"), re.MULTILINE)]


def object_of(path: str):
    module, names = path, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        found = getattr(found, name)
    return found


def test_the_api_reference_has_every_public_name():
    documented = {id(object_of(name)) for name in DOCUMENTED}
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    for package in PUBLIC:
        module = importlib.import_module(f"region_learner{package}")
        for name in module.__all__:
            value = getattr(module, name)
            is_constant = not callable(value)
            assert f"`{name}`" in text if is_constant else id(value) in documented, f"{module.__name__}.{name}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_everything_in_the_api_reference_has_a_docstring(name):
    assert object_of(name).__doc__


# Links


def slug(heading: str) -> str:
    """Returns the anchor that Python-Markdown makes for a heading."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def anchors_of(path: Path) -> set[str]:
    tokens = tokens_of(path)
    return {slug(tokens[i + 1].content) for i, token in enumerate(tokens) if token.type == "heading_open"}


@pytest.mark.parametrize("path", [*READ, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_no_link_is_broken(path):
    for token in inline_of(path):
        target = token.attrs.get("href") or token.attrs.get("src")
        if target is None or re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = str(target).partition("#")
        there = path.parent / file if file else path
        assert there.exists(), f"{target} in {name_of(path)}"
        if anchor:
            assert anchor in anchors_of(there), f"{target} in {name_of(path)}"


# Commands


def lines_of(block: str) -> list[list[str]]:
    """Returns the commands of a shell block as lists of arguments."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


LOOPS = {"for", "done"}
# Commands of other programs are not checked.
OTHERS = {"hf", "git", "ffmpeg", "sbatch", "source", "twine", "."}


@pytest.fixture
def parsed(monkeypatch):
    """Collects each leaf command that is called, its parameters and its remaining arguments. Nothing is executed."""
    seen = []

    def invoke(command, context):
        seen.append((context.command_path, context.params, context.args))

    monkeypatch.setattr(typer.core.TyperCommand, "invoke", invoke)
    return seen


def check_fields(text: str):
    """Checks that the fields in `--config JSON` and `--video-config JSON` exist."""
    for option, value in re.findall(r"--(config|video-config)[ =]'(\{.*?\})'(?=[\s`,);:.]|$)", text, re.MULTILINE):
        fields = json.loads(value)
        top, video = RegionLearnerConfig.own_fields(), RegionLearnerVideoConfig.own_fields()
        known = video if option == "video-config" else top | video  # `convert` takes both
        assert set(fields) <= known, text
        assert set(fields.get("region_options") or ()) <= set(RegionOptions._fields), text


def check_training(argv: list[str], names: set[str]):
    argv = [
        _full_name("finetune_folder" if word == "RECIPE" else word) for word in argv if word not in ("...", "--json")
    ]
    if {"--help", "--help-all"} & set(argv):
        return
    on_cpu = {"use_cpu": True} if "--bf16" in argv else {}  # without a GPU, bf16 is refused otherwise
    for model, data, arguments in parse_stages(argv, **on_cpu):
        corpora = {data.corpus, *(entry["corpus"] for entry in data.corpora or ())}
        assert corpora <= {*list_corpora(), *names}, argv
        assert (model.config or {}).get("loss", "infonce") in {*LOSSES, *names}, argv
        assert arguments.output_dir


def check_command(argv: list[str], names: set[str], parsed: list):
    """Checks that `region-learner ARGV` parses, and that the corpora, tasks and protocols in it exist."""
    parsed.clear()
    app([word for word in argv if word != "..."], prog_name="region-learner", standalone_mode=False)
    if {"--help", "--version"} & set(argv):
        return
    ((command, given, rest),) = parsed
    if command.endswith(" train"):
        check_training(rest, names)
        return
    protocol, corpus = given.get("protocol"), given.get("corpus")
    if protocol not in names and command.endswith(" evaluate"):
        corpus = _choose_protocol(protocol, corpus, given["split"], given["task"]).corpus
    assert corpus is None or corpus in {*list_corpora(), *names}, argv
    if corpus in list_corpora() and command != "region-learner corpus make":
        options_of(corpus, given.get("corpus_options"), given.get("max_missing"))
    mapping("--config", given.get("config"))


def check_script(script: Path, argv: list[str], *shared: Path):
    """Checks that a script has the options in `argv`, either itself or from one of the `shared` files."""
    source = "".join(path.read_text(encoding="utf-8") for path in (script, *shared))
    for word in argv:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{word} of {script}"


def check_install(argv: list[str]):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in argv:
        for extras in re.findall(r"^(?:region-learner|\.)\[(.+)\]$", word):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys(), word


def check_launch(argv: list[str], names: set[str]):
    """Checks `accelerate launch ... -m region_learner.training ...` and `torchrun ...`."""
    at = argv.index("-m")
    assert argv[at + 1] == "region_learner.training", argv
    if argv[0] == "accelerate":
        assert argv[1] == "launch", argv
        launched: Namespace = launch_command_parser().parse_args(argv[2:])
        assert launched.module, argv
        assert launched.training_script == "region_learner.training", argv
    check_training(argv[at + 2 :], names)


def check_line(words: list[str], files: dict[str, str], names: set[str], parsed: list):
    program, *argv = words
    if program in LOOPS | OTHERS:
        return
    if program == "region-learner":
        check_command(argv, names, parsed)
    elif program in ("accelerate", "torchrun"):
        check_launch(words, names)
    elif program == "pip":
        check_install(argv)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{argv[0]}:.*##", makefile, re.MULTILINE), words
    elif program == "python" and argv[0] == "-m":
        path = Path(*argv[1].split("."))
        assert argv[1].startswith("experiments."), words
        check_script(ROOT / path.with_suffix(".py"), argv[2:], ROOT / "experiments" / "ablation.py")
    elif program == "python" and argv[0] in files:
        check_command(argv[1:], names, parsed)
    else:
        assert program == "python", f"{shlex.join(words)} is neither checked nor in OTHERS"
        check_script(ROOT / argv[0], argv[1:])


def without_placeholders(block: str) -> str:
    """Returns a block without placeholders for options, and with a number instead of its loop variable."""
    return re.sub(r"\[--name[^\]]*\]", "", block).replace("$seed", "0")


def registered_in(path: Path) -> set[str]:
    """Returns the names of corpora, losses and protocols that the code of a page registers."""
    return set(re.findall(r'register_\w+\(\s*"(\w+)"', "\n".join(blocks_of(path, "python"))))


@pytest.mark.parametrize("path", [path for path in READ if blocks_of(path, "bash")], ids=name_of)
def test_commands_parse(path, parsed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = named_blocks(path)
    for name, block in files.items():
        Path(name).write_text(block, encoding="utf-8")
    for block in blocks_of(path, "bash"):
        check_fields(block)
        for words in lines_of(without_placeholders(block)):
            check_line(words, files, registered_in(path), parsed)


def code_in_text(path: Path) -> list[str]:
    return [token.content for token in inline_of(path) if token.type == "code_inline"]


def test_commands_in_sentences_parse(parsed):
    known, count = {*commands(), "corpus"}, 0
    for path in READ:
        for code in code_in_text(path):
            words = shlex.split(code)[1:] if code.startswith("region-learner ") else []
            if not words or not words[0].islower():  # the placeholder COMMAND
                continue
            if " ".join(words) not in known:
                check_fields(code)
                check_command(words, registered_in(path), parsed)
                count += 1
    assert count > 5


@cache
def known_options() -> set[str]:
    """Returns the options of all commands, of training, of `accelerate launch`, and of the repository's scripts."""
    known = {option for command in commands().values() for item in command.params for option in item.opts}
    known |= {option for command in commands().values() for item in command.params for option in item.secondary_opts}
    known |= {f"--{name.replace('_', '-')}" for name in (*_NAMES, *SHORT_NAMES)}
    known |= {"--help", "--help-all", "--version", "--json"}
    known |= set(launch_command_parser()._option_string_actions)
    scripts = [path for folder in ("benchmarks", "experiments", "examples") for path in (ROOT / folder).rglob("*.py")]
    for script in (*scripts, ROOT / "tests" / "conftest.py"):
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text(encoding="utf-8")))
    return known


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_options_in_sentences_exist(path):
    for code in code_in_text(path):
        if code.startswith("--"):
            check_fields(code)
            for option in re.findall(r"(?:^| )(--[a-z][\w-]*)", code):
                assert option.replace("_", "-") in known_options(), f"{option} in {name_of(path)}"


# Code


def import_if_installed(name: str):
    """Returns a module, or None if it needs a package that only slow tests use and that is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = {re.match(r"[\w-]+", text)[0] for extra in ("engines", "export") for text in extras[extra]}
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if name.partition(".")[0] in optional:
            return None
        raise


@pytest.mark.parametrize("path", [path for path in READ if blocks_of(path, "python")], ids=name_of)
def test_code_imports_what_exists(path):
    files = named_blocks(path)
    for block in blocks_of(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                if (module := import_if_installed(node.module)) is not None:
                    assert not [item.name for item in node.names if not hasattr(module, item.name)], block
            elif isinstance(node, ast.Import):
                for item in node.names:
                    if f"{item.name}.py" not in files:
                        import_if_installed(item.name)


@pytest.fixture
def registers(monkeypatch):
    """Removes what a test registers after the test."""
    monkeypatch.setattr(registry, "_CORPORA", dict(registry._CORPORA))
    losses, functions, protocols = list(LOSSES), dict(_REGISTERED), dict(PROTOCOLS)
    yield
    LOSSES[:] = losses
    for kept, before in ((_REGISTERED, functions), (PROTOCOLS, protocols)):
        kept.clear()
        kept.update(before)


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


def test_extending_runs(registers, monkeypatch, tmp_path, capsys):
    page = DOCS / "extending.md"
    monkeypatch.chdir(tmp_path)
    for name, block in named_blocks(page).items():
        Path(name).write_text(block, encoding="utf-8")
    for split in ("train", "val"):
        for seed, name in enumerate(("wave", "point")):
            video = make_video(tmp_path / "data" / "gestures" / split / f"{name}.mp4", 1, seed)
            with open(video.parent / "metadata.jsonl", "a", encoding="utf-8") as file:
                print(json.dumps({"file_name": video.name, "text": name}), file=file)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    main_module = runpy.run_path("mine.py")
    assert main_module["main"] is main

    # Training is smaller and shorter than in the document.
    quick = "--max-steps 1 --use-cpu true --dataloader-num-workers 0 --per-device-train-batch-size 2"
    save_checkpoint("space_time", Path("CHECKPOINT"))
    for block in blocks_of(page, "bash"):
        for program, script, *argv in lines_of(block):
            if program == "region-learner":
                assert exit_code([script, *argv, *quick.split()]) == 0, capsys.readouterr().err
            else:
                assert (program, script) == ("python", "mine.py")
                assert exit_code([*argv, *(quick.split() if argv[0] == "train" else ())]) == 0, capsys.readouterr().err
                if argv[:2] == ["corpus", "list"]:
                    assert "SPLIT/NAME.mp4, one video per gesture" in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("runs/gestures/config.json").read_text())["loss"] == "hardest_negative"

    for block in blocks_of(page, "python"):
        if not block.startswith("# "):
            names: dict = {}
            exec(block, names)
    options = names["config"].resolved.region_options
    assert (options.pooling, options.mask_loss_weight) == ("max", 0.0)

    ((model, _, arguments),) = parse_stages(["gestures.yaml", "--model", "CHECKPOINT"])
    assert (model.video_config, arguments.num_train_epochs) == ({"num_frames": 8}, 10)
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def test_the_loss_of_extending_is_as_described(registers, tmp_path):
    import torch

    block = named_blocks(DOCS / "extending.md")["my_loss.py"]
    names: dict = {}
    exec(block, names)
    generator = torch.Generator().manual_seed(0)
    text, video = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=generator), dim=-1)
    ids = torch.tensor([3, 1, 4, 1, 5])
    outputs, config = Namespace(text_embeds=text, video_embeds=video), Namespace(margin=0.2)
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if ids[j] != ids[i]]
        hardest = max(float(text[i] @ video[j]) for j in others), max(float(text[j] @ video[i]) for j in others)
        expected += sum(max(0.0, 0.2 + cosine - float(text[i] @ video[i])) for cosine in hardest) / 5
    loss = names["hardest_negative_loss"](config, outputs, ids, False)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# Messages


@cache
def messages() -> list[str]:
    """Returns all strings in the code of the package, with a null character in place of each inserted value."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "\0", node.value))
    return found


def test_explained_messages_are_those_of_the_package():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\*\*`+ ?(.+?) ?`+\*\*$", page, re.MULTILINE)
    assert len(explained) > 30
    for message in explained:
        parts = [part.strip(" ") for part in message.split("...") if len(part.strip(" .,:;()")) > 4]
        pattern = ".*".join(re.escape(part) for part in parts)
        assert any(re.search(pattern, text, re.DOTALL) for text in messages()), message
    for reason in re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", page, re.MULTILINE):
        for part in re.findall(r"`(.+?)`", reason):
            assert any(part.removesuffix(" ...") in text for text in messages()), part


# The site itself


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//', html), page
    api = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site" / "api").glob("*.html"))
    for name in DOCUMENTED:
        assert f'id="{name}"' in api, name
    assert "[<code>" not in api
