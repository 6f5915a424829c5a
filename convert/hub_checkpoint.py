"""A checkpoint on the hub, with one shard at a time on the disk.

Goes in: a :class:`~.source.HubSource`. Comes out: a :class:`HubCheckpoint`, which looks like a
:class:`~.checkpoint.Checkpoint`: it knows every tensor before any shard is there, from the remote
headers of safetensors files, or from the config for files without a header.

Files are kept in ``{cache}/checkpoints/{owner}--{name}/{commit}``, a plain checkpoint folder. Files
in huggingface_hub's own cache are used from there and stay there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infer_os.files import new_file, working_folder
from infer_os.models.architectures import describe

from .checkpoint import CONTAINERS, index_note, read_config, read_index
from .eight_bit import join_eight_bit, without_scales
from .errors import DownloadError, FileFormatError, OutputError, SourceError
from .hub import HubFile, Repository, download, has_content, is_offline, list_repository, read_start
from .output_locks import locked, make_folder
from .plain_file import read_json
from .safetensors_file import SafetensorsFile, header_end, read_entries
from .source import SMALL_FILES, HubSource
from .tensors import StoredTensor, TensorFile

# the largest tokenizer.json of these families has 14.5 MB
_LARGEST_SMALL_FILE = 256 << 20
_LISTING = "source.json"
_LOCK = ".lock"
# Usually covers the header of a shard of any of these families in one request.
_FIRST_BYTES = 128 << 10
_TORCH_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Count = Callable[[int], None]


def _uncounted(n_bytes: int) -> None:
    pass


@dataclass
class HubCheckpoint:
    """An open repository. ``config`` and ``tensors`` as in a :class:`Checkpoint`.

    ``shards`` are the weights' files by name. ``count`` is called with bytes as they arrive.
    """

    source: HubSource
    repository: Repository
    folder: Path
    kept: bool
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    shards: dict[str, HubFile] = field(default_factory=dict)
    opener: Callable[[Path], TensorFile] = SafetensorsFile
    count: Count = _uncounted
    notes: tuple[str, ...] = ()

    @contextmanager
    def open(self, path: Path) -> Iterator[TensorFile]:
        """Open a shard, downloading it if need be; its actual tensors replace the expected ones."""
        local = self._local(path.name)
        if local is None:
            local = path
            _require_network(self.repository, path.name)
            download(self.repository, self.shards[path.name], path, self.count)
        file = self.opener(local)
        try:
            self._learn(path, file)
            yield file
        finally:
            file.close()

    def is_local(self, name: str) -> bool:
        """Whether a shard needs no download."""
        return self._local(name) is not None

    def room(self) -> int:
        """Bytes that the shards still need on the disk: the largest one, or all if kept."""
        missing = [0]
        for name, file in self.shards.items():
            part = self.folder / f"{name}.incomplete"
            here = part.stat().st_size if part.exists() else 0
            missing.append(0 if self.is_local(name) else max(file.size - here, 0))
        return sum(missing) if self.kept else max(missing)

    def has_begun(self) -> bool:
        """Whether any part of a shard has already been downloaded."""
        names = (*self.shards, *(f"{name}.incomplete" for name in self.shards))
        return any((self.folder / name).exists() for name in names)

    def drop(self, name: str) -> None:
        """Delete a converted shard, unless the source is kept."""
        if not self.kept:
            (self.folder / name).unlink(missing_ok=True)

    def _local(self, name: str) -> Path | None:
        size = self.shards[name].size
        for path in (self.folder / name, _in_hub_cache(self.repository, name)):
            if path is not None and path.is_file() and path.stat().st_size == size:
                return path
        return None

    def _learn(self, path: Path, file: TensorFile) -> None:
        elsewhere = {n: t for n, t in self.tensors.items() if t.path.name != path.name}
        for name, tensor in join_eight_bit(file.tensors).items():
            if name in elsewhere:
                raise FileFormatError(
                    f"{path}: tensor {name!r} is also in {elsewhere[name].path.name}"
                )
            elsewhere[name] = StoredTensor(name, tensor.dtype, tensor.shape, path)
        self.tensors = elsewhere

    def read_small_files(self) -> None:
        """Fetch config and tokenizer into the folder, pick the weights, describe every tensor."""
        files = self.repository.files
        if "config.json" not in files:
            hint = ready_hint(self.repository)
            raise SourceError(
                f"{self.repository.id}: not a checkpoint: it has no config.json{hint}"
            )
        self._bring("config.json")
        self.config = read_config(self.folder)
        describe(self.config)  # an unsupported architecture ends here, before larger downloads
        whole, index, self.opener = _pick_container(self.repository)
        is_whole = whole in files
        if is_whole and index in files:
            self.notes = index_note(whole, index)
        for name in (*SMALL_FILES[1:], *(() if is_whole else (index,))):
            if name in files:
                self._bring(name)
        weight_map = {} if is_whole else read_index(self.folder / index)
        names = sorted(set(weight_map.values())) or [whole]
        missing = [name for name in names if name not in files]
        if missing:
            raise SourceError(
                f"{self.repository.id}: the hub has {len(names) - len(missing)} of {len(names)} "
                f"shards; missing: {', '.join(missing[:3])}"
            )
        self.shards = {name: files[name] for name in names}
        if self.opener is SafetensorsFile:
            self.tensors = self._read_remote_headers()
        else:
            self.tensors = self._expected_tensors(weight_map, whole)

    def _bring(self, name: str) -> None:
        file, target = self.repository.files[name], self.folder / name
        if file.size > _LARGEST_SMALL_FILE:
            raise SourceError(f"{self.repository.id}: {name} has {file.size} bytes, far too many")
        if has_content(file, target):
            return
        cached = _in_hub_cache(self.repository, name)
        if cached is not None:
            shutil.copyfile(cached, target)
            return
        _require_network(self.repository, name)
        download(self.repository, file, target, _uncounted)

    def _read_remote_headers(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for name, file in self.shards.items():
            path = self.folder / name
            local = self._local(name)
            if local is not None:
                with SafetensorsFile(local) as opened:
                    found = dict(opened.tensors)
            else:
                _require_network(self.repository, name)
                head = read_start(self.repository, file, _FIRST_BYTES)
                end = header_end(path, head, file.size)
                if end > len(head):
                    head = read_start(self.repository, file, end)
                entries, _ = read_entries(path, head, file.size)
                found = {key: tensor for key, (tensor, _) in entries.items()}
            for key, tensor in found.items():
                if key in tensors:
                    raise FileFormatError(
                        f"{path}: tensor {key!r} is also in {tensors[key].path.name}"
                    )
                tensors[key] = StoredTensor(key, tensor.dtype, tensor.shape, path)
        return join_eight_bit(tensors)

    def _expected_tensors(self, weight_map: dict[str, str], whole: str) -> dict[str, StoredTensor]:
        """The expected tensors, in the files that the index names; checked after download.

        Shapes and names are the network's; the type, from the config, is used only for progress.
        """
        network = describe(self.config)
        named = self.config.get("torch_dtype") or self.config.get("dtype")
        dtype = _TORCH_DTYPES.get(str(named).removeprefix("torch."), "F16")
        needed = {part.source: part for rule in network.rules for part in rule.parts}
        weight_map = without_scales(weight_map) or dict.fromkeys(needed, whole)
        parts = {name: part for part in needed.values() for name in (part.source, *part.also)}
        tensors = {}
        for name, shard in weight_map.items():
            spellings = (name.removeprefix(prefix) for prefix in network.prefixes)
            part = next((parts[s] for s in (*spellings, name) if s in parts), None)
            shape = part.shape if part else ()
            tensors[name] = StoredTensor(name, dtype, shape, self.folder / shard)
        return tensors


def find_repository(source: HubSource, cache: Path) -> Repository:
    """A repository at its current commit; offline, as a cache has it.

    Raises:
        SourceError: no such model, or offline and not cached.
        UnreachableError: the hub does not answer.
    """
    if not is_offline():
        return list_repository(source)
    return _stored_listing(source, cache / "checkpoints" / source.repository.replace("/", "--"))


@contextmanager
def open_hub_checkpoint(
    source: HubSource, cache: Path, *, keep: bool, plan_only: bool
) -> Iterator[HubCheckpoint]:
    """Open a repository: small files and headers are read, no shard is downloaded yet.

    Args:
        source: what to open.
        cache: the folder of our own downloads.
        keep: leave the files there at the end.
        plan_only: only headers will be read; leaves the cache as it is.

    Raises:
        SourceError: no such model, or not one that can be used.
        DownloadError: the hub cannot be reached. Then, and after Ctrl-C, the files stay.
    """
    home = cache / "checkpoints" / source.repository.replace("/", "--")
    with ExitStack() as stack:
        repository = find_repository(source, cache)
        folder = home / repository.commit
        if plan_only and not (folder / _LISTING).is_file():
            place = Path(tempfile.gettempdir(), "infer-os-plan")
            folder = stack.enter_context(working_folder(place))
        if plan_only:
            checkpoint = HubCheckpoint(source, repository, folder, kept=True)
            checkpoint.read_small_files()
            yield checkpoint
            return
        make_folder(folder)
        stack.enter_context(
            locked(folder / _LOCK, f"{source.repository}: another conversion is downloading it")
        )
        kept = keep or _read_listing(folder).get("kept") is True
        _write_listing(folder, source, repository, kept)
        checkpoint = HubCheckpoint(source, repository, folder, kept)
        try:
            checkpoint.read_small_files()
            yield checkpoint
        except (KeyboardInterrupt, SystemExit, DownloadError):
            raise
        except BaseException as error:
            # the user can free space on a full disk: keep what an earlier run downloaded
            if not (isinstance(error, OutputError) and checkpoint.has_begun()):
                _clean(checkpoint)
            raise
        _clean(checkpoint)


def _pick_container(repository: Repository) -> tuple[str, str, Callable[[Path], TensorFile]]:
    for whole, index, opener in CONTAINERS:
        if whole in repository.files or index in repository.files:
            return whole, index, opener
    wanted = ", ".join(name for whole, index, _ in CONTAINERS for name in (whole, index))
    raise SourceError(
        f"{repository.id}: no weights that can be read; looked for {wanted}{ready_hint(repository)}"
    )


def ready_hint(repository: Repository) -> str:
    """What to type for a repository that holds GGUF files; "" if it holds none."""
    names = sorted(name for name in repository.files if name.endswith(".gguf"))
    if not names:
        return ""
    return f"; it holds ready GGUF files, so name one: infer-os run {repository.id}:{names[0]}"


def _clean(checkpoint: HubCheckpoint) -> None:
    """Remove what was downloaded, unless it is kept, and folders that become empty."""
    folder = checkpoint.folder
    if not checkpoint.kept:
        for name in (*SMALL_FILES, *(index for _, index, _ in CONTAINERS), *checkpoint.shards):
            (folder / name).unlink(missing_ok=True)
            (folder / f"{name}.incomplete").unlink(missing_ok=True)
        (folder / _LISTING).unlink(missing_ok=True)
    (folder / _LOCK).unlink(missing_ok=True)
    for emptied in (folder, folder.parent):
        try:
            emptied.rmdir()
        except OSError:
            return


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _require_network(repository: Repository, name: str) -> None:
    if is_offline():
        raise SourceError(
            f"{repository.id}: {name} is not cached, and HF_HUB_OFFLINE is set; unset it"
        )


def _in_hub_cache(repository: Repository, name: str) -> Path | None:
    """A file in huggingface_hub's own cache, of the same commit and size."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.id, name, revision=repository.commit)
    if not isinstance(found, str):
        return None
    path = Path(found)
    return path if path.stat().st_size == repository.files[name].size else None


def _write_listing(folder: Path, source: HubSource, repository: Repository, kept: bool) -> None:
    old = _read_listing(folder).get("revisions")
    revisions = {*(old if isinstance(old, list) else ()), source.revision}
    value = {
        "repository": repository.id,
        "revisions": sorted(revisions),
        "commit": repository.commit,
        "kept": kept,
        "files": [asdict(file) for file in repository.files.values()],
    }
    listing = folder / _LISTING
    with (
        _writing(listing),
        new_file(listing, part=folder / f"{_LISTING}.incomplete") as file,
    ):
        file.write(json.dumps(value, indent=1).encode())


def _read_listing(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / _LISTING) or {}
    except FileFormatError:
        return {}


def _stored_listing(source: HubSource, home: Path) -> Repository:
    """The repository as our cache or huggingface_hub's has it, without the network.

    Raises:
        SourceError: neither has it.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    for path in sorted(home.glob(f"*/{_LISTING}")):
        value = _read_listing(path.parent)
        if source.revision in (*value.get("revisions", ()), value.get("commit")):
            files = {entry["name"]: HubFile(**entry) for entry in value["files"]}
            return Repository(value["repository"], value["commit"], files)
    config = try_to_load_from_cache(source.repository, "config.json", revision=source.revision)
    if isinstance(config, str):
        snapshot = Path(config).parent
        files = {
            p.name: HubFile(p.name, p.stat().st_size) for p in snapshot.iterdir() if p.is_file()
        }
        return Repository(source.repository, snapshot.name, files)
    raise SourceError(
        f"{source.repository}: HF_HUB_OFFLINE is set, and neither {home.parent} nor "
        f"{constants.HF_HUB_CACHE} holds revision {source.revision!r}; unset it"
    )
