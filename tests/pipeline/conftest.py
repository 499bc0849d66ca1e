"""A small project on which stages are tried, and nothing started to try them; see `stages`."""

import pytest
import yaml


@pytest.fixture
def no_processes(monkeypatch):
    """Has our modules run in this process where the code would start one; the list of these commands."""
    from stages import instead_of_processes

    return instead_of_processes(monkeypatch)


@pytest.fixture(scope="session")
def toy_project(tmp_path_factory, tiny_language_model):
    """A project with the tiny model under the name `tiny`, one table, a small budget and one worker; to be copied."""
    from etpo_paper.base.settings import read_params
    from etpo_paper.data.tasks import prepare_task, save_task
    from etpo_paper.model.loading import save_model

    root = tmp_path_factory.mktemp("project")
    params = read_params()
    params["scales"]["smoke"] |= {
        "tasks": ["kidney-stone"],
        "training": {"env_steps": 6, "environments": 2, "max_new_tokens": 4, "lora_rank": 4, "precision": "float32"},
        "sandbox": {"workers": 1, "preload": []},
        "runs": {"keep_finished": True},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    save_task(prepare_task("kidney-stone"), root / "data" / "tables")
    model, tokenizer, card = tiny_language_model
    save_model(model, tokenizer, root / "models" / "tiny", {**card, "name": "tiny"}, model.dtype)
    return root
