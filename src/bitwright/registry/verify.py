"""Check a registry against its log, which is the truth: mend what follows it, and tell what cannot be mended."""

from dataclasses import dataclass

from bitwright.errors import InputError, RegistryError
from bitwright.registry.add import changed_files
from bitwright.registry.keys import PUBLIC
from bitwright.registry.log import KEY, check_signatures, read_log
from bitwright.registry.mirror import compared
from bitwright.registry.signing import check_signature, installed
from bitwright.registry.state import Model, Version, fold
from bitwright.registry.store import CURRENT, MODELS, VERSIONS, Registry, Writer, linked, swap, writing


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found. head: the hash of the last entry; who keeps it elsewhere can tell whether the log goes on from
    there. damage: what nobody can mend. repaired: what was mended.
    """

    entries: int
    versions: int
    head: str
    damage: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def verify(registry: Registry, name: str | None = None, *, files: bool = True) -> Verified:
    """Check the log and its signatures, links, versions and MLflow; of one model, if one is named.

    files: whether every file of every version is read, and compared with what was added.

    Raises:
        InputError: the registry is locked, or has no such model.
    """
    damage, repaired, remarks = list[str](), list[str](), list[str]()
    try:
        with writing(registry, "verify") as writer:
            log = writer.log
            check_signatures(registry.root, log)
            models = {name: writer.model(name)} if name else fold(log.entries())
            for model in models.values():
                repaired += _mend_link(registry, model)
            damage += _unknown(registry, writer)
    except RegistryError as error:
        return Verified(0, 0, "", (str(error),))
    versions = [(m, version) for m in models.values() for version in m.versions.values() if not version.gone]
    for model, version in versions:
        damage += _damage(registry, model, version, files=files)
    if any(version.signed for _, version in versions) and not installed() and files:
        remarks.append("signatures of versions were not checked: model-signing is not installed")
    if registry.mlflow is not None and name is None:
        try:
            found = compared(registry)
            repaired += [f"MLflow: {text}" for text in found["repaired"]]
            if found["seen"] > len(read_log(registry.root).lines):
                damage.append(
                    f"the log was cut: it ends at entry {len(log.lines)}, and MLflow has seen entry {found['seen']}"
                )
        except (RegistryError, InputError) as error:
            remarks.append(f"MLflow was not compared: {error}")
    return Verified(len(log.lines), len(versions), log.head, tuple(damage), tuple(repaired), tuple(remarks))


def _mend_link(registry: Registry, model: Model) -> list[str]:
    """Let `current` name the champion. What was mended."""
    link = registry.folder(model.name) / CURRENT
    found = linked(link)
    if found == model.champion:
        return []
    if model.champion is None:
        link.unlink(missing_ok=True)
    elif registry.version(model.name, model.champion).is_dir():
        swap(link, model.champion)
    else:
        return []  # told as damage
    return [f"{model.name}: the link was {found or 'none'}, and is {model.champion or 'none'}"]


def _damage(registry: Registry, model: Model, version: Version, *, files: bool) -> list[str]:
    place = registry.version(model.name, version.number)
    if not place.is_dir():
        return [f"{model.name}: the files of version {version.number} are gone"]
    if not files:
        return []
    try:
        changed = changed_files(place, version.content)
        if not changed and version.signed and installed():
            check_signature(place, place.with_name(f"{place.name}.sig"), registry.root / KEY / PUBLIC)
    except (RegistryError, InputError, OSError) as error:
        return [str(error)]
    return [f"{place}: files that are not as they were added: {', '.join(changed[:5])}"] if changed else []


def _unknown(registry: Registry, writer: Writer) -> list[str]:
    """Versions on disk that the log does not know: an older log was put in its place, or somebody copied them."""
    models = fold(writer.log.entries())
    return [
        f"{place}: the log knows no such version; was an older log put back?"
        for place in sorted((registry.root / MODELS).glob(f"*/{VERSIONS}/*"))
        if place.is_dir() and place.name.isdigit()
        and (place.parts[-3] not in models or int(place.name) not in models[place.parts[-3]].versions)
    ]  # fmt: skip
