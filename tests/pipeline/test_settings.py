"""The settings: every scale holds together, every mistake is one line before anything runs."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import (
    BaseModels,
    Environment,
    Sandbox,
    Section,
    Training,
    WarmStarts,
    load_defaults,
    load_settings,
    read_params,
    scales,
)
from etpo_paper.data.tasks import SOURCES, TASKS
from pipeline import base_model, data, figures, gradients, matrix, select, train, warm_start, worlds
from pipeline.resolve import resolve

PARAMS = read_params()
STUDIES = PARAMS["studies"]


# What the scales say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", scales())
def test_every_scale_holds_together(scale):
    settings = resolve(scale)
    assert set(settings.tasks) <= set(TASKS)
    assert settings.file == ("params.yaml" if scale not in STUDIES else f"studies/{scale}/params.yaml")


def test_the_large_scales_cover_the_paper():
    study, paper = load_settings("study"), load_settings("paper")
    assert set(paper.tasks) == set(TASKS) > set(study.tasks)
    kaggle = {name for name, task in TASKS.items() if task.kind.startswith("kaggle")}
    assert set(study.tasks) == kaggle, "the tasks of the convergence figure"
    for settings in (study, paper):
        assert settings.training.env_steps == 500 and settings.environment.max_steps == 5
        assert settings.environment.split_seeds == (0, 1, 2, 3, 4) and len(settings.seeds) >= 3


@pytest.mark.parametrize("scale", ["tuning", "retuning", "toy_tuning"])
def test_no_method_is_tuned_on_what_the_study_reports_or_more_often_than_another(scale):
    tuning = load_settings(scale)
    assert not set(tuning.tasks) & {*load_settings("study").tasks, *load_settings("laptop").tasks}
    variants = [tuning.methods[name].get("method") for name in tuning.method_names]
    assert variants.count("etpo") == variants.count("ppo_kl") > 1


def test_a_finished_round_states_all_that_decides_its_numbers():
    for study in STUDIES:
        chosen = read_params(f"studies/{study}/params.yaml")["scales"][study]
        assert set(chosen["training"]) == set(Training.model_fields), study
        assert set(chosen["environment"]) == set(Environment.model_fields), study
        assert set(chosen["sandbox"]) == set(Sandbox.model_fields) - {"workers"}, study
        assert (paths.ROOT / "studies" / study / "README.md").is_file()
    assert sorted(path.parent.name for path in paths.ROOT.glob("studies/*/params.yaml")) == sorted(STUDIES)


def test_params_is_short_and_has_a_line_on_every_setting():
    text = paths.PARAMS.read_text()
    assert len(text.splitlines()) <= 200
    for line in text.split("\nscales:")[0].splitlines():
        if re.match(r"( {2}| {4})\w+: [^&{*]", line) and "held_out_seeds" not in line:
            assert "#" in line, f"params.yaml: no comment beside {line.strip()}"


def test_names_that_other_rooms_know_are_the_same_here():
    assert set(BaseModels.model_fields) == set(WarmStarts.model_fields)
    for source in SOURCES:
        load_settings("smoke").replace(data={"sources": [source]})


# How they are put together -------------------------------------------------------------------------------------------


def test_a_scale_overrides_and_the_rest_stays():
    plain, smoke = read_params(), load_settings("smoke")
    assert smoke.training.env_steps == plain["scales"]["smoke"]["training"]["env_steps"]
    assert smoke.training.lora_rank == plain["training"]["lora_rank"] == load_defaults().training.lora_rank
    assert str(smoke.place("training", "env_steps")) == "scales.smoke.training.env_steps"
    assert str(smoke.place("training", "lora_rank")) == "training.lora_rank"


def test_a_scale_may_want_a_method_otherwise():
    wanted, toy = read_params()["scales"]["toy"]["methods"], load_settings("toy")
    assert toy.method_names == tuple(wanted)
    assert toy.methods.etpo.critic_lr == wanted["etpo"]["critic_lr"] != load_settings("study").methods.etpo.critic_lr
    assert toy.methods.etpo.gamma == load_settings("study").methods.etpo.gamma


def test_a_variant_may_train_otherwise():
    scale, own = load_settings("factors"), load_settings("factors", "etpo_rank")
    assert own.training.lora_rank == 4 != scale.training.lora_rank
    assert own.training.plain() | {"lora_rank": 16, "lora_alpha": 32} == scale.training.plain()
    assert load_settings("factors", "etpo_one_step").training == scale.training


def test_settings_cannot_be_changed_but_be_copied_with_changes():
    settings = load_settings("smoke")
    for change in (
        lambda: setattr(settings, "seeds", (1,)),
        lambda: setattr(settings.training, "env_steps", 1),
        lambda: setattr(settings.methods, "etpo", {}),
        lambda: setattr(settings.methods.etpo, "beta", 1.0),
        lambda: settings.environment.split_seeds.append(5),
    ):
        with pytest.raises((AttributeError, ValueError)):
            change()
    other = settings.replace(training={"env_steps": 8}, methods={"etpo": {"beta": 0.5}}, seeds=[7])
    assert (other.training.env_steps, other.methods.etpo.beta, other.seeds) == (8, 0.5, (7,))
    assert other.training.lora_rank == settings.training.lora_rank and settings.training.env_steps == 32
    with pytest.raises(UserError, match=r"scales\.smoke\.training\.env_steps: got 0, expected at least 1"):
        settings.replace(training={"env_steps": 0})


def test_a_section_is_a_mapping_and_goes_back_to_plain_lists():
    section = Section({"a": [1, [2]], "b": {"c": 3}}, d="x")
    assert (section.a, section.b.c, section["d"], "e" in section, list(section)) == ((1, (2,)), 3, "x", False, [*"abd"])
    assert section.plain() == {"a": [1, [2]], "b": {"c": 3}, "d": "x"}
    with pytest.raises(AttributeError, match="no setting 'e'; there are: a, b, d"):
        _ = section.e


# Mistakes ------------------------------------------------------------------------------------------------------------


def params_with(change, root):
    """A project whose params.yaml has one change."""
    params = copy.deepcopy(PARAMS)
    change(params)
    (root / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


def one_line(capsys, main, *argv):
    """The line that a command ends with: nothing else is printed, and nothing is run."""
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1, printed.err
    return printed.err.strip()


def smoke(**sections):
    """A change of the scale smoke."""

    def change(params):
        for name, value in sections.items():
            params["scales"]["smoke"][name] = value

    return change


def top(section, **values):
    """A change of a section at the top."""
    return lambda params: params[section].update(values)


def method(name, **values):
    """A change of a method's section."""
    return lambda params: params["methods"][name].update(values)


MISTAKES = [
    (
        smoke(training={"env_steps": -5}),
        "scales.smoke.training.env_steps: got -5, expected at least 1; change it in params.yaml",
    ),
    (smoke(seeds=0), "scales.smoke.seeds: got 0, expected a list; change it in params.yaml"),
    (smoke(seeds=[]), "scales.smoke.seeds: got [], expected a list of at least 1; change it in params.yaml"),
    (smoke(seeds=[0, 0]), "scales.smoke.seeds: got [0, 0], expected a list without repetitions; change it .*"),
    (smoke(seeds=[0, "1"]), "scales.smoke.seeds[1]: got '1', expected a whole number (a number in quotes .*"),
    (
        smoke(model="smolm2"),
        "unknown model 'smolm2' in scales.smoke.model of params.yaml; did you mean 'smollm2'? "
        "choose one of: codellama, smollm2, tiny",
    ),
    (smoke(model=5), "scales.smoke.model: got 5, expected text; change it in params.yaml"),
    (
        smoke(tasks=["diabets"]),
        "unknown task 'diabets' in scales.smoke.tasks of params.yaml; did you mean 'diabetes'? choose one of: .*",
    ),
    (
        smoke(methods=["etpo", "ppo_lk"]),
        "unknown method 'ppo_lk' in scales.smoke.methods of params.yaml; did you mean 'ppo_kl'? choose one of: .*",
    ),
    (smoke(methods="etpo"), "scales.smoke.methods: got 'etpo', expected a list; change it in params.yaml"),
    (smoke(methods={"etpo": None}), "scales.smoke.methods.etpo: got None, expected a section of settings, {} for .*"),
    (
        smoke(methods={"etpo": {"bta": 0.1}}),
        "unknown setting 'bta' in scales.smoke.methods.etpo of params.yaml; did you mean 'beta'? choose one of: .*",
    ),
    (
        smoke(methods={"etpo": {"beta": "0.001"}}),
        "scales.smoke.methods.etpo.beta: got '0.001', expected a number (a number in quotes is text; leave them out); "
        "change it in params.yaml",
    ),
    (
        lambda p: (p["methods"].update({"a@b": p["methods"]["etpo"]}), smoke(methods=["etpo", "a@b"])(p)),
        "scales.smoke.methods[1]: got 'a@b', expected a name of letters, digits, _ and -, with a letter at its "
        "beginning; change it in params.yaml",
    ),
    (
        smoke(training={"env_step": 3}),
        "unknown setting 'env_step' in scales.smoke.training of params.yaml; did you mean 'env_steps'? .*",
    ),
    (smoke(training=None), "scales.smoke.training: got None, expected a section of settings, {} for no change; .*"),
    (smoke(training={"grad_norm": True}), "scales.smoke.training.grad_norm: got True, expected a number; change .*"),
    (smoke(training={"lora_rank": True}), "scales.smoke.training.lora_rank: got True, expected a whole number; .*"),
    (smoke(training={"env_steps": 500.0}), "scales.smoke.training.env_steps: got 500.0, expected a whole number; .*"),
    (smoke(training={"final_rate": 1.5}), "scales.smoke.training.final_rate: got 1.5, expected at most 1; change .*"),
    (smoke(training={"grad_norm": float("inf")}), "scales.smoke.training.grad_norm: got inf, expected a finite .*"),
    (smoke(training={"precision": "fp16"}), "scales.smoke.training.precision: got 'fp16', expected 'bfloat16' or .*"),
    (
        smoke(training={"temperature": 0.7}),
        "scales.smoke.training.temperature: got 0.7, expected 1.0: ppo_kl learns from actions as drawn from the policy "
        "itself; change it in params.yaml",
    ),
    (top("training", top_k=50), "training.top_k: got 50, expected 0: ppo_kl learns from actions as drawn from the .*"),
    (smoke(trainning={}), "unknown section 'trainning' in scales.smoke of params.yaml; did you mean 'training'? .*"),
    (lambda p: p["scales"]["smoke"].pop("seeds"), "scales.smoke of params.yaml has no seeds; a scale names its .*"),
    (lambda p: p["scales"].update(smoke=[]), "scales.smoke: got [], expected a section of settings; change it in .*"),
    (lambda p: p.pop("scales"), ".*/params.yaml has no section scales; restore it from git"),
    (lambda p: p.pop("sandbox"), "sandbox is missing; add it to params.yaml or restore the file from git"),
    (lambda p: p["sandbox"].pop("workers"), "sandbox.workers is missing; add it to params.yaml or restore the file .*"),
    (lambda p: p.update(sandbx={}), "unknown section 'sandbx' in params.yaml; did you mean 'sandbox'? choose one .*"),
    (
        lambda p: p.update(trainning=p.pop("training")),
        "unknown section 'trainning' in params.yaml; did you mean 'training'? choose one .*",
    ),
    (
        lambda p: p["sandbox"].update(memry_mb=p["sandbox"].pop("memory_mb")),
        "unknown setting 'memry_mb' in sandbox of params.yaml; did you mean 'memory_mb'? .*",
    ),
    (lambda p: p.update(studies="tuning"), "studies: got 'tuning', expected a list of folders in studies/; change .*"),
    (top("sandbox", memory=512), "unknown setting 'memory' in sandbox of params.yaml; did you mean 'memory_mb'? .*"),
    (top("sandbox", cpu_seconds=0), "sandbox.cpu_seconds: got 0, expected more than 0; change it in params.yaml"),
    (top("sandbox", allow_unsafe="no"), "sandbox.allow_unsafe: got 'no', expected true or false; change it in .*"),
    (top("data", sources=["embeded"]), "data.sources[0]: got 'embeded', expected 'embedded', 'local' or 'online'; .*"),
    (top("warm_start", tiny={"steps": 1}), "warm_start.tiny.batch is missing; add it to params.yaml or restore .*"),
    (top("base_model", gpt={}), "unknown setting 'gpt' in base_model of params.yaml; choose one of: codellama, .*"),
    (
        top("evaluation", held_out_seeds=[4, 100]),
        "evaluation.held_out_seeds: got [4, 100], expected none of environment.split_seeds, which holds [4]: held-out "
        "splits must never have given a reward; change it in params.yaml",
    ),
    (top("perplexity", stride=600), "perplexity.stride: got 600, expected at most perplexity.window, 512; change .*"),
    (
        lambda p: p["scales"]["smoke"]["worlds"]["benchmark"].update(worlds=[0]),
        "scales.smoke.worlds.benchmark.worlds: got [0], expected seeds other than worlds.tuning_seed 0: .*",
    ),
    (top("worlds", tuning_seed=1), "scales.smoke.worlds.seeds: got [1], expected seeds other than worlds.tuning_.*"),
    (
        lambda p: p["worlds"]["variants"]["ppo_kl"].update(clp=0.1),
        "unknown setting of ppo_kl 'clp' in worlds.variants.ppo_kl of params.yaml; did you mean 'clip'? choose one .*",
    ),
    (
        lambda p: p["worlds"]["variants"].update(new={"beta": 1.0}),
        "worlds.variants.new: got Section({'beta': 1.0}), expected a section of settings with the name of a method, .*",
    ),
    (method("ppo_kl", chip=1), "unknown setting of ppo_kl 'chip' in methods.ppo_kl of params.yaml; did you mean .*"),
    (lambda p: p["methods"]["ppo_kl"].pop("clip"), "methods.ppo_kl.clip is missing; add it to params.yaml or .*"),
    (method("ppo_kl", clip="0.2"), "methods.ppo_kl.clip: got '0.2', expected a number (a number in quotes is .*"),
    (method("ppo_kl", epochs=0), "methods.ppo_kl.epochs: got 0, expected at least 1; change it in params.yaml"),
    (method("ppo_kl", policy_lr=-1.0), "methods.ppo_kl.policy_lr: got -1.0, expected at least 0; change it in .*"),
    (method("etpo", reflect=1), "methods.etpo.reflect: got 1, expected true or false; change it in params.yaml"),
    (method("etpo", policy_lr="fast"), "methods.etpo: policy_lr: got 'fast', expected a learning rate or exact; .*"),
    (method("etpo", beta=0.0), "methods.etpo.beta: got 0.0, expected more than 0; change it in params.yaml"),
    (method("etpo", gamma=1.5), "methods.etpo.gamma: got 1.5, expected at most 1; change it in params.yaml"),
    (method("etpo", method="epto"), "unknown method 'epto' in methods.etpo of params.yaml; did you mean .*"),
    (
        method("etpo", training={"lora_rnk": 4}),
        "unknown setting 'lora_rnk' in methods.etpo.training of params.yaml; .*",
    ),
    (method("etpo", training={"lora_rank": 0}), "methods.etpo.training.lora_rank: got 0, expected at least 1; .*"),
    (lambda p: p["methods"].update(etpo=5), "methods.etpo: got 5, expected a section of settings; change it in .*"),
]


@pytest.mark.parametrize(("change", "line"), MISTAKES, ids=[line[:60] for _, line in MISTAKES])
def test_a_mistake_in_the_settings_is_one_line_before_anything_runs(root, capsys, change, line):
    params_with(change, root)
    printed = one_line(capsys, select.main, "smoke")
    assert re.fullmatch("error: " + ".*".join(map(re.escape, line.split(".*"))), printed), printed
    assert not (root / "selected.yaml").exists()


@pytest.mark.parametrize(
    ("main", "argv", "line"),
    [
        (
            select.main,
            ["smok"],
            "error: unknown scale 'smok'; did you mean 'smoke'? choose one of: batches, confirming, factors, .*",
        ),
        (matrix.main, ["--scale", "laptop"], "error: scales.laptop.runs.keep_finished is false, so `dvc .*"),
        (matrix.main, ["--scale", "study", "--workers", "0"], "error: --workers: got 0, expected at least 1"),
        (gradients.main, ["--scale", "laptop"], "error: scales.laptop of params.yaml has no section gradients; see .*"),
        (base_model.main, ["--model", "tinny"], "error: unknown model 'tinny'; did you mean 'tiny'? choose one of: .*"),
        (warm_start.main, ["--model", "tinny"], "error: unknown model 'tinny'; did you mean 'tiny'? choose one of: .*"),
        (data.main, ["--task", "iris"], "error: unknown task 'iris'; choose one of: airlines, .*"),
        (worlds.main, ["--scale", "retuning"], "error: unknown method 'poad' in worlds.variants.poad.*"),
        (
            figures.main,
            ["--scale", "laptop", "--notebook", "mian_table"],
            "error: unknown notebook 'mian_table'; did .*",
        ),
        (train.main, [*"--scale laptop --method etpo --task diabetes --seed x".split()], "error: argument --seed: .*"),
        (train.main, [*"--scale laptop --method etpo --task diabetes --seed -1".split()], "error: --seed: got -1, .*"),
        (train.main, [*"--scale laptop --method etpo --task iris --seed 0".split()], "error: unknown task 'iris'; .*"),
        (
            train.main,
            [*"--scale laptop --method sac --task diabetes --seed 0".split()],
            "error: unknown method 'sac'; .*",
        ),
        (train.main, [*"--scale laptop --mehtod etpo".split()], "error: the following arguments are required: .*"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, main, argv, line):
    printed = one_line(capsys, main, *argv)
    assert re.fullmatch(".*".join(map(re.escape, line.split(".*"))), printed), printed


def test_a_selection_stays_until_another_is_named(root, capsys):
    params_with(lambda params: None, root)
    assert one_line(capsys, select.main).startswith("error: selected.yaml: missing or damaged, expected the selection")
    select.main(["smoke"])
    chosen = (root / "selected.yaml").read_bytes()
    (root / "selected.yaml").write_text("selected: {scale: smoke}")
    select.main([])
    assert (root / "selected.yaml").read_bytes() == chosen and b"scale: smoke" in chosen


def test_a_mistake_in_the_settings_of_another_scale_does_not_stop_this_one(root):
    params_with(smoke(seeds=0), root)
    assert load_settings("laptop").seeds == (0,)


def test_a_mistake_in_a_finished_round_names_its_file(root):
    params_with(lambda params: None, root)
    study = PARAMS["scales"]["study"]
    file = root / "studies" / "retuning" / "params.yaml"
    file.parent.mkdir(parents=True)
    for content, line in [
        ({"scales": {"retuning": study}, "training": {}}, "unknown section 'training' in studies/retuning/params.yaml"),
        ({"scales": {"other": study}, "methods": {}}, "studies/retuning/params.yaml has no scale retuning"),
        ({"scales": {"retuning": study}}, "methods: got None, .*; change it in studies/retuning/params.yaml"),
        (
            {"scales": {"retuning": study | {"methods": ["a"], "seeds": 1}}, "methods": {"a": {}}},
            r"scales\.retuning\.seeds: got 1, expected a list; change it in studies/retuning/params\.yaml",
        ),
    ]:
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=line):
            load_settings("retuning")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "params.yaml is missing; restore it from git"),
        ("a: [", "params.yaml is not valid YAML: .* correct it there"),
        ("a: 1\nb: {c: 1, c: 2}\n", "not valid YAML: c is given twice, again in line 2; correct it there"),
        ("a: 1\na: 2\n", "not valid YAML: a is given twice, again in line 2; correct it there"),
        ("", "params.yaml has no section scales"),
        ("scales: []", "params.yaml has no section scales"),
        (b"\xff", "params.yaml is not UTF-8 text"),
    ],
)
def test_a_missing_or_broken_file_is_one_line(root, text, line):
    if text is not None:
        (root / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=line) as caught:
        load_settings("smoke")
    assert "\n" not in str(caught.value)


def test_a_name_that_breaks_a_command_or_is_a_number_to_dvc_is_refused(root):
    for name in ("a@b", "1a", "a.b", "a b", "-a", "a:b"):
        params_with(lambda params, name=name: params["scales"].update({name: params["scales"]["smoke"]}), root)
        with pytest.raises(UserError, match=f"scales.{name}: got '{name}', expected a name of letters"):
            load_settings(name)
    params_with(lambda params: params["scales"].update({1000.0: {}}), root)
    with pytest.raises(UserError, match="unknown scale '1e3'; choose one of: 1000.0, laptop"):
        load_settings("1e3")


def test_names_that_are_one_stage_of_dvc_are_refused(root):
    def change(params):
        params["methods"]["etpo-a"] = params["methods"]["etpo"]
        params["scales"]["smoke"] |= {"methods": ["etpo", "etpo-a"], "tasks": ["a-b", "b"], "seeds": [1]}

    params_with(change, root)
    with pytest.raises(UserError, match=r"scales\.smoke\.methods: got .*'etpo-a'.*both be etpo-a-b-1 in two runs"):
        load_settings("smoke")


# What one of YAML's versions reads as a number or as true, and the other as text or as another number.
SCALARS = """1e-3 1.0e-3 1e1 1E3 1e+3 12e03 1.5e3 .5 +.5 -.5 5. 1_000 0_1.5 010 -010 08 0o10 0x1F 0b11 0b12 0x 0 -0 +1
    1:30 190:20:30.15 on off On yes no y n NO true True TRUE tRUE false null Null ~ .inf -.INF inf .nan nan .Nan 1.2.3
    2001-01-01 1-2 1e e1 0e0 1.e3 . - a""".split()


def test_the_settings_are_read_as_dvc_reads_them(root):
    from dvc.utils.serialize import parse_yaml

    text = "scales: {}\nlist:\n" + "".join(f"  - {scalar}\n" for scalar in SCALARS)
    (root / "params.yaml").write_text(text)
    ours, dvcs = read_params()["list"], parse_yaml(text, "params.yaml")["list"]
    wrong = [(scalar, a, b) for scalar, a, b in zip(SCALARS, ours, dvcs, strict=True) if repr(a) != repr(b)]
    assert not wrong and ours[0] == 0.001 and ours[SCALARS.index("on")] == "on" and ours[SCALARS.index("010")] == 10


@pytest.mark.parametrize("name", ["methods.etpo.beta", "methods.ppo_kl.beta", "scales.toy.methods.etpo.critic_lr"])
def test_an_experiment_of_dvc_changes_the_setting_that_it_names_and_no_other(tmp_path, name):
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls

    path = tmp_path / "params.yaml"
    shutil.copy(paths.ROOT / "params.yaml", path)
    apply_overrides(str(path), [f"{name}=0.125"])
    changed, before = yaml.safe_load(path.read_text()), yaml.safe_load((paths.ROOT / "params.yaml").read_text())
    *sections, last = name.split(".")
    for part in sections:
        assert {k: v for k, v in changed.items() if k != part} == {k: v for k, v in before.items() if k != part}
        changed, before = changed[part], before[part]
    assert changed == before | {last: 0.125}


def test_a_small_number_of_an_experiment_stays_a_number(root):
    from dvc.utils.hydra import apply_overrides

    shutil.copy(Path(__file__).parents[2] / "params.yaml", root)
    apply_overrides(str(root / "params.yaml"), ["methods.etpo.beta=1e-7"])
    assert "beta: 1e-07" in (root / "params.yaml").read_text()  # text to YAML 1.1
    assert resolve("laptop").methods["etpo"].beta == 1e-7
