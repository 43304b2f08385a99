"""A family's parts have names: nothing outside `strive/models` reaches into a model for them."""

import re
from pathlib import Path

import pytest

import strive
from strive.models.loading import FAMILIES, Policy

PACKAGE = Path(strive.__file__).parent


def test_only_models_knows_what_families_call_their_parts() -> None:
    reaches = re.compile(r"\bmodel\.model\.(visual|language_model)|merger|deepstack_|expand\(3")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "models"
        for line in path.read_text(encoding="utf-8").splitlines()
        if reaches.search(line.partition('"""')[0]) and not line.lstrip().startswith("#")
    ]
    assert found == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_its_parts(name: str, policies: dict[str, Policy]) -> None:
    policy = policies[name]
    family, model = policy.family, policy.model
    assert family.name == name == model.config.model_type
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    tower = {names[id(parameter)] for parameter in family.tower(model).parameters()}
    projector = {names[id(parameter)] for parameter in family.projector_parameters(model)}
    assert tower == {key for key in names.values() if ".visual." in key}
    assert projector == {key for key in tower if "merger" in key}
    language = {names[id(parameter)] for parameter in family.language_model(model).parameters()}
    assert language and not language & tower
    targets = family.adapter_targets
    linear = [key.removesuffix(".weight") for key in names.values() if key.endswith(".weight")]
    for pattern in targets.values():
        matched = [key for key in linear if re.fullmatch(pattern, key)]
        assert matched
        assert all(re.fullmatch(family.may_have_adapters, key) for key in matched)
