"""A batch on more than one machine: blocks of records to Ray Data actors, an engine on each node.

Goes in: the address of a running Ray cluster, and how a node opens its engine. It answers records
as :class:`~.batch_engine.BatchEngine` does, so that files, journal and order are the same. A block
whose worker is lost is computed again elsewhere; no answer is given twice.

Ray is imported only here, and only when requested.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from infer_os import __version__
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.library import llama_version
from infer_os.native.owner import Owner
from infer_os.native.residency import peak_rss_bytes

from ..chat.session_file import model_hash
from ..errors import ClusterError, SettingsError
from ..plan.memory_plan import PROCESS_BYTES
from ..settings import SamplingSettings, StopSettings
from .batch_engine import BatchEngine, SampleKey
from .journal import DoneKey, key_of, line_of
from .records import BadRecord, RecordParser, Result, ValueParser, result_of, value_of
from .running import BatchStatistics

#: Records of a block: enough to keep a node's sequences busy, few enough to compute again if a
#: worker is lost.
LARGEST_BLOCK, SMALLEST_BLOCK = 256, 16
#: Blocks that each node should get, so that a slow one does not decide when all is done.
_BLOCKS_PER_NODE = 4
#: Blocks that a node has at a time: the one that it computes, and the next.
_IN_FLIGHT = 2
#: What Ray additionally holds, for blocks and calls, once a worker computes.
_BLOCK_BYTES = 32_000_000
#: Times that a worker is restarted; a model that kills its node must not do so forever.
_RESTARTS = 8

#: Opens a node's engine, on the node; a function that can be pickled.
OpenEngine = Callable[[], BatchEngine]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node reports with each block: where it is, what runs there, what the block cost."""

    node: str
    model: str
    parallel: int
    planned_bytes: int
    peak_rss_bytes: int
    prompt_tokens: int
    shared_tokens: int
    notes: tuple[str, ...] = ()


class RayBatch(Owner):
    """A cluster that answers records. A context manager.

    What is of the kind of records is in the methods up to ``_worker``, for those of another kind.
    """

    @staticmethod
    def _sent(record: Any) -> dict[str, Any]:
        """A record as JSON, of which the worker's parser makes it again."""
        return value_of(record)

    @staticmethod
    def _received(line: int, value: dict[str, Any]) -> Any:
        """The result behind a line."""
        return result_of(line, value)

    @staticmethod
    def _refused(record: BadRecord) -> Any:
        """What a record gets that none could be made of."""
        return Result(record.id, record.line, error=record.error)

    @staticmethod
    def _n_tokens(result: Any) -> int:
        """Tokens that a result brought."""
        return len(result.tokens)

    @staticmethod
    def _worker() -> type[Worker]:
        """What a node keeps."""
        return Worker

    def __init__(
        self, address: str, open_engine: OpenEngine, sampling: SamplingSettings, stops: StopSettings
    ) -> None:
        """Connect to a cluster.

        Args:
            address: ``HOST:PORT`` of its head, or ``auto`` for the one that this machine is in.
            open_engine: opens an engine on a node.
            sampling: that of the run, which records were parsed with.
            stops: likewise.

        Raises:
            SettingsError: Ray is not installed, or there is no cluster.
        """
        self._join(address, (open_engine, sampling, stops, own_versions()))

    def _join(self, address: str, node: tuple[Any, ...]) -> None:
        """Connect; ``node`` is what a node's worker is made of."""
        ray = _ray_module()
        self._ray, self._address, self._node = ray, address, node
        self.statistics = BatchStatistics()
        #: The latest report of each node, by its address and number.
        self.nodes: dict[str, NodeReport] = {}
        self._n_told = 0
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise SettingsError(
                f"--ray {address}: no cluster can be reached ({_first_line(error)}); start one "
                "with ray start --head"
            ) from None
        # the driver reports what happens; Ray's own messages are in its log files
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._places = [
            node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
        ]
        if not self._places:
            ray.shutdown()
            raise SettingsError(f"--ray {address}: no node of the cluster has a CPU")

    @property
    def n_nodes(self) -> int:
        """Nodes that there were at the start."""
        return len(self._places)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the nodes' engines, each note once."""
        texts = (text for report in self.nodes.values() for text in report.notes)
        return tuple(dict.fromkeys(texts))

    def take_notes(self) -> tuple[str, ...]:
        """The notes that were not taken before."""
        new = self.notes[self._n_told :]
        self._n_told += len(new)
        return new

    def run(
        self, records: Iterable[Any], done: Set[SampleKey] = frozenset()
    ) -> Generator[Any, None, None]:
        """Answer records; a block's results come when the whole block is finished.

        All records are read first, into Ray's object store. See :meth:`BatchEngine.run`.

        Raises:
            SettingsError: a node cannot load the model as the settings say.
            ClusterError: nodes differ, one cannot go on, or the cluster failed.
        """
        started = time.perf_counter()
        now = self.statistics = BatchStatistics()
        bad: list[Any] = []
        blocks = [
            self._ray.put(_table(rows))
            for rows in cut_blocks(self._rows(records, done, bad), self.n_nodes)
        ]
        told: set[DoneKey] = set()
        for result in itertools.chain(bad, self._results(blocks) if blocks else ()):
            # a block that was computed twice
            if key_of(result) in told:
                continue
            told.add(key_of(result))
            now.records += 1
            now.failed += result.error is not None
            now.completion_tokens += self._n_tokens(result)
            now.seconds = time.perf_counter() - started
            yield result

    def _rows(self, records: Iterable[Any], done: Set[SampleKey], bad: list[Any]) -> Iterator[str]:
        """Records as sent to the nodes; invalid ones are put aside as results."""
        for record in records:
            if isinstance(record, BadRecord):
                bad.append(self._refused(record))
                continue
            given = [index for index in range(record.n) if (record.id, index) in done]
            if len(given) < record.n:
                value = {"line": record.line, "value": self._sent(record), "done": given}
                yield json.dumps(value)

    def _results(self, blocks: list[Any]) -> Iterator[Any]:
        """The answers to blocks in the object store, in the order in which blocks finish."""
        from ray.data import ActorPoolStrategy, DataContext, from_arrow_refs
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        DataContext.get_current().enable_progress_bars = False
        places = itertools.cycle(self._places)

        def place() -> dict[str, Any]:
            # one worker per node; if its node is lost, Ray may start it on another
            affinity = NodeAffinitySchedulingStrategy(next(places), soft=True)
            return {"scheduling_strategy": affinity, "max_restarts": _RESTARTS}

        size = min(self.n_nodes, len(blocks))
        with warnings.catch_warnings():
            # Ray 2.60 announces that 2.64 will place workers by another parameter
            warnings.simplefilter("ignore")
            answers = from_arrow_refs(blocks).map_batches(
                self._worker(),
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=self._node,
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=_IN_FLIGHT),
                # an engine computes with all cores of its node; none is reserved, so that a worker
                # always finds a place to start again
                num_cpus=0,
                ray_remote_args_fn=place,
            )
        try:
            for table in answers.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for row in table.to_pylist():
                    if row["report"]:
                        self._hear(json.loads(row["report"]))
                    if row["answer"]:
                        yield self._received(row["line"], json.loads(row["answer"]))
        except RayError as error:
            raise ClusterError(
                f"--ray {self._address}: the cluster failed: {_first_line(error)}"
            ) from None

    def _hear(self, report: dict[str, Any]) -> None:
        """Take a node's report.

        Raises:
            SettingsError, ClusterError: it cannot work, or has a different model from the others.
        """
        if failure := report.get("failure"):
            kind = SettingsError if report["is_input"] else ClusterError
            raise kind(f"--ray {self._address}: node {report['node']}: {failure}")
        heard = NodeReport(**{**report, "notes": tuple(report["notes"])})
        for other in self.nodes.values():
            if other.model != heard.model:
                raise ClusterError(
                    f"--ray {self._address}: nodes {other.node} and {heard.node} have different "
                    "files under the model's name; copy one of them to all"
                )
        self.nodes[heard.node] = heard
        self.statistics.prompt_tokens += heard.prompt_tokens
        self.statistics.counts.shared += heard.shared_tokens

    def close(self) -> None:
        """Leave the cluster, which frees its workers."""
        self._ray.shutdown()


class Worker:
    """What Ray keeps on a node: an engine, made once; called with a block, returns its answers.

    Failures come back as a report: an exception would reach the user as Ray's.
    """

    def __init__(
        self,
        open_engine: OpenEngine,
        sampling: SamplingSettings,
        stops: StopSettings,
        versions: tuple[str, str],
    ) -> None:
        self._sampling, self._stops = sampling, stops
        self._open(open_engine, versions)

    def _open(self, open_engine: Callable[[], Any], versions: tuple[str, str]) -> None:
        """Load the engine, if this node has what the sender has."""
        self._failure, self._is_input, self._model = "", False, ""
        self._engine: Any = None
        # what Ray's own libraries hold is not in the engine's plan
        self._overhead = overhead_bytes()
        try:
            mine = own_versions()
            if mine != versions:
                self._failure = f"has infer-os {' with '.join(mine)}, not {' with '.join(versions)}"
                return
            engine = open_engine()
            self._model = model_hash(read_gguf_header(engine.path))
            self._engine = engine
        except Exception as error:
            self._fail(error)

    def __call__(self, table: Any) -> Any:
        """Answer a block, an Arrow table with a column ``row`` of JSON."""
        answers: list[tuple[int, str]] = []
        if self._engine is not None:
            try:
                answers = [*self._answers(self._engine, table.column("row").to_pylist())]
            except Exception as error:
                self._fail(error)
        return _answer_table(answers, json.dumps(self._report()))

    def _parser(self) -> ValueParser[Any]:
        """Makes records of what was sent, which the sender has checked already."""
        return RecordParser(self._sampling, self._stops, tells=True)

    def _answers(self, engine: Any, rows: list[str]) -> Iterator[tuple[int, str]]:
        parser = self._parser()
        values = [json.loads(row) for row in rows]
        done = {(v["value"]["id"], index) for v in values for index in v["done"]}
        records = (parser.parse(v["line"], v["value"]) for v in values)
        for result in engine.run(records, done):
            yield result.line, line_of(result).decode()

    def _fail(self, error: Exception) -> None:
        ours = type(error).__module__.startswith("infer_os.")
        self._failure = str(error) if ours else f"{type(error).__name__}: {error}"
        self._is_input = ours and getattr(error, "exit_code", 2) == 2

    def _report(self) -> dict[str, Any]:
        node, engine = _node_name(), self._engine
        if self._failure or engine is None:
            return {"node": node, "failure": self._failure, "is_input": self._is_input}
        now = engine.statistics
        return asdict(NodeReport(
            node, self._model, engine.n_seq, engine.planned_bytes + self._overhead,
            peak_rss_bytes(),
            now.prompt_tokens, now.counts.shared, engine.notes,
        ))  # fmt: skip


def own_versions() -> tuple[str, str]:
    """Of this package and of llama.cpp, which must be those of all nodes."""
    return __version__, llama_version()


def overhead_bytes() -> int:
    """Memory that a worker takes beyond the plan of a program with an engine.

    To be called before there is an engine.
    """
    return max(0, psutil.Process().memory_info().rss - PROCESS_BYTES) + _BLOCK_BYTES


def block_size(n_records: int, n_nodes: int) -> int:
    """Records of a block, so that each node gets several."""
    wanted = math.ceil(n_records / (_BLOCKS_PER_NODE * n_nodes))
    return min(LARGEST_BLOCK, max(SMALLEST_BLOCK, wanted))


def cut_blocks(rows: Iterator[str], n_nodes: int) -> Iterator[list[str]]:
    """Rows in blocks; only as much of a long input is held as needed to choose their size."""
    head = list(itertools.islice(rows, LARGEST_BLOCK * _BLOCKS_PER_NODE * n_nodes))
    size = block_size(len(head), n_nodes)
    rest = itertools.chain(head, rows)
    while block := list(itertools.islice(rest, size)):
        yield block


def _table(rows: list[str]) -> Any:
    import pyarrow

    return pyarrow.table({"row": pyarrow.array(rows, pyarrow.large_string())})


def _answer_table(answers: list[tuple[int, str]], report: str) -> Any:
    """Answers as rows; the report is in the first one, which has no answer."""
    import pyarrow

    return pyarrow.table({
        "line": pyarrow.array([0, *(line for line, _ in answers)], pyarrow.int64()),
        "answer": pyarrow.array(["", *(text for _, text in answers)], pyarrow.large_string()),
        "report": pyarrow.array([report, *("" for _ in answers)], pyarrow.large_string()),
    })  # fmt: skip


def _ray_module() -> Any:
    """ray, with its data library.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            f"--ray needs Ray Data ({error}): pip install 'infer-os[ray]'"
        ) from None
    return ray


def _node_name() -> str:
    import ray

    context = ray.get_runtime_context()
    return f"{ray.util.get_node_ip_address()}/{context.get_node_id()[:8]}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
