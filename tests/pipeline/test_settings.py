import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings, read_params
from etpo_paper.data.tasks import TASKS

SCALES = "smoke laptop tuning retuning starts factors batches toy_tuning toy study paper".split()


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_names_known_things(scale):
    settings = load_settings(scale)
    assert set(settings.tasks) <= set(TASKS)
    assert settings.model in settings.base_model


def test_the_large_scales_cover_the_paper():
    study, paper = load_settings("study"), load_settings("paper")
    assert set(paper.tasks) == set(TASKS) > set(study.tasks)
    kaggle = {name for name, task in TASKS.items() if task.kind.startswith("kaggle")}
    assert set(study.tasks) == kaggle, "the tasks of the convergence figure"
    for settings in (study, paper):
        assert settings.training.env_steps == 500 and settings.environment.max_steps == 5
        assert settings.environment.split_seeds == [0, 1, 2, 3, 4] and len(settings.seeds) >= 3


@pytest.mark.parametrize("scale", ["tuning", "retuning", "toy_tuning"])
def test_no_method_is_tuned_on_what_the_study_reports_or_more_often_than_another(scale):
    tuning = load_settings(scale)
    assert not set(tuning.tasks) & {*load_settings("study").tasks, *load_settings("laptop").tasks}
    variants = [tuning.methods[name].plain().get("method") for name in tuning.method_names]
    assert variants.count("etpo") == variants.count("ppo_kl") > 1


def test_a_scale_overrides_and_the_rest_stays():
    plain, smoke = read_params(), load_settings("smoke")
    assert smoke.training.env_steps == plain["scales"]["smoke"]["training"]["env_steps"]
    assert smoke.training.lora_rank == plain["training"]["lora_rank"]


def test_a_scale_may_want_a_method_otherwise():
    wanted, toy = read_params()["scales"]["toy"]["methods"], load_settings("toy")
    assert toy.method_names == list(wanted)
    assert toy.methods.etpo.critic_lr == wanted["etpo"]["critic_lr"] != load_settings("study").methods.etpo.critic_lr
    assert toy.methods.etpo.gamma == load_settings("study").methods.etpo.gamma


def test_a_variant_may_train_otherwise():
    scale, own = load_settings("factors"), load_settings("factors", "etpo_rank")
    assert own.training.lora_rank == 4 != scale.training.lora_rank
    assert own.training.plain() | {"lora_rank": 16, "lora_alpha": 32} == scale.training.plain()
    assert load_settings("factors", "etpo_one_step").training == scale.training


def test_every_setting_has_a_line_on_what_it_is():
    text = paths.PARAMS.read_text().split("scales:")[0]
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if line.startswith("  ") and value.strip() and not line.lstrip().startswith(("#", "<<")) and "&" not in value:
            assert "#" in value, f"params.yaml: no comment beside {key.strip()}"


def test_unknown_scale():
    known = "batches, factors, laptop, paper, retuning, smoke, starts"
    with pytest.raises(UserError, match=f"unknown scale 'tiny'; choose one of: {known}"):
        load_settings("tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["scales"]["smoke"]["training"].update(env_step=3), "unknown parameter in scales.smoke.training"),
        (lambda p: p["scales"]["smoke"].update(trainning={}), "unknown section in scales.smoke 'trainning'"),
        (lambda p: p["scales"]["smoke"]["methods"].append("sac"), "unknown method 'sac'"),
        (
            lambda p: p["scales"]["smoke"].update(methods={"etpo": {"bta": 0.1}}),
            "unknown parameter in scales.smoke.methods.etpo 'bta'",
        ),
        (
            lambda p: p["methods"]["etpo"].update(training={"lora_rnk": 4}),
            "unknown parameter in methods.etpo.training 'lora_rnk'",
        ),
        (lambda p: p["scales"]["smoke"]["training"].update(env_steps="1e3"), "training.env_steps: got '1e3'"),
        (lambda p: p["scales"]["smoke"].update(training=None), "scales.smoke.training: got None, expected settings"),
        (lambda p: p["scales"]["smoke"].pop("seeds"), "scales.smoke of params.yaml has no seeds"),
        (lambda p: p.pop("scales"), "params.yaml has no section scales"),
    ],
)
def test_what_is_misspelt_or_missing_is_an_error(tmp_path, monkeypatch, change, message):
    params = read_params()
    change(params)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    with pytest.raises(UserError, match=message):
        load_settings("smoke", "etpo")


def test_missing_and_broken_params(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    with pytest.raises(UserError, match="is missing"):
        load_settings("smoke")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_settings("smoke")
