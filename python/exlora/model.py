"""`ExLlamaV2`: a model that is loaded explicitly, and its forward pass."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import padding_of, to_array, token_rows
from exlora._unsupported import refuse, warn_unknown
from exlora.cache import ExLlamaV2Cache, ExLlamaV2CacheBase, check_columns
from exlora.config import ExLlamaV2Config
from exlora.indexed_embeddings import EMBEDDING_INDEX, indexed_embeddings, prompt_of
from exlora.module import ExLlamaV2Module, modules_of
from exlora.types import Adapter

__all__ = ["ExLlamaV2"]

#: Called with (modules done, modules in total).
Callback = Callable[[int, int], object]


class ExLlamaV2(_exlora.ExLlamaV2Base):
    """The model of a config, not loaded until `load()` or `load_autosplit()`."""

    #: Ids from this one on stand for vectors.
    EMBEDDING_INDEX = EMBEDDING_INDEX

    if TYPE_CHECKING:

        @property
        def config(self) -> ExLlamaV2Config:
            """The config it was made with."""

    def __init__(self, config: ExLlamaV2Config, lazy_load: bool = False, archparams: Any = None) -> None:
        del config, lazy_load  # the base class keeps the config
        refuse("ExLlamaV2", archparams=archparams)

    @property
    def modules(self) -> list[ExLlamaV2Module]:
        """The modules by name only, in the order in which they act; the output head is the last."""
        return modules_of(self, self.config.num_hidden_layers)

    @property
    def modules_dict(self) -> dict[str, ExLlamaV2Module]:
        """The modules by name."""
        return {module.key: module for module in self.modules}

    @property
    def cache_map(self) -> dict[int, str]:
        """The device of each layer's cache."""
        return dict.fromkeys(range(self.config.num_hidden_layers), self.get_cache_devices()[0])

    @property
    def tp_context(self) -> None:
        """Always `None`: tensor parallelism is not supported."""
        return None

    def load(
        self,
        gpu_split: Any = None,
        lazy: bool = False,
        stats: bool = False,
        callback: Callback | None = None,
        callback_gen: Callable[[int, int], Iterator[Any]] | None = None,
        progress: bool = False,
    ) -> None:
        """Loads the weights; `gpu_split` has no effect. `progress` shows a bar; `callback` receives the progress."""
        if callback_gen is not None:
            for _ in self.load_gen(gpu_split, lazy, stats, callback, callback_gen):
                pass
        elif not lazy:
            self._load(callback or progress)

    def load_gen(
        self,
        gpu_split: Any = None,
        lazy: bool = False,
        stats: bool = False,
        callback: Callback | None = None,
        callback_gen: Callable[[int, int], Iterator[Any]] | None = None,
    ) -> Iterator[Any]:
        """As `load`, as a generator that yields what `callback_gen` yields. Closing it stops loading."""
        if lazy:
            return
        reports: queue.SimpleQueue[tuple[int, int] | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def report_progress(done: int, total: int) -> None:
            if stopped.is_set():
                raise GeneratorExit
            reports.put((done, total))

        def work() -> None:
            try:
                self._load(report_progress)
                reports.put(None)
            except BaseException as error:  # handed to the thread that waits
                reports.put(error)

        worker = threading.Thread(target=work, name="exlora-load", daemon=True)
        worker.start()
        finished = False
        try:
            while (report := reports.get()) is not None:
                if isinstance(report, BaseException):
                    raise report
                if callback is not None:
                    callback(*report)
                if callback_gen is not None:
                    yield from callback_gen(*report)
            finished = True
        finally:
            stopped.set()
            worker.join()
            if not finished:
                # A small model may have been loaded before the generator was closed.
                self.unload()

    def load_autosplit(
        self,
        cache: ExLlamaV2CacheBase,
        reserve_vram: Any = None,
        last_id_only: bool = False,
        callback: Callback | None = None,
        callback_gen: Callable[[int, int], Iterator[Any]] | None = None,
        progress: bool = False,
    ) -> None:
        """As `load`: there is one device, so nothing is split or reserved."""
        del cache, reserve_vram, last_id_only
        self.load(callback=callback, callback_gen=callback_gen, progress=progress)

    def load_autosplit_gen(
        self,
        cache: ExLlamaV2CacheBase,
        reserve_vram: Any = None,
        last_id_only: bool = False,
        callback: Callback | None = None,
        callback_gen: Callable[[int, int], Iterator[Any]] | None = None,
    ) -> Iterator[Any]:
        """As `load_gen`."""
        del cache, reserve_vram, last_id_only
        return self.load_gen(callback=callback, callback_gen=callback_gen)

    def load_tp(self, *args: Any, **kwargs: Any) -> None:
        """Tensor parallelism is not supported."""
        refuse("exlora", tensor_parallel=True)

    load_tp_gen = load_tp

    def _load(self, progress: bool | Callback) -> None:
        self.config.check()
        if self.config.model_dir is None:
            raise _exlora.error("model_config_invalid", "the config has no model_dir", hint="set config.model_dir")
        model = _exlora.Model(
            self.config.model_dir,
            device=self.config.device,
            threads=self.config.threads,
            head=self.config.head,
            activations=self.config.activations,
            max_seq_len=self.config.max_seq_len,
            **self.config.rope_overrides,
            progress=progress,
        )
        self.set_native_model(model)

    def unload(self) -> None:
        """Unloads the weights, without which generators answer no more. Caches, adapters and generators hold them."""
        self.set_native_model(None)

    def update_loras(self) -> None:
        """Nothing to do: each request chooses its adapters."""

    def is_quant(self) -> bool:
        """Whether its weights are quantized."""
        return bool(getattr(self.config, "is_quantized", False))

    def get_modules(self) -> list[ExLlamaV2Module]:
        """`modules`."""
        return self.modules

    def get_cache_devices(self) -> list[str]:
        """The devices that hold caches."""
        return [self.native_model().device]

    def forward(
        self,
        input_ids: Any,
        cache: ExLlamaV2CacheBase | None = None,
        input_mask: Any = None,
        preprocess_only: bool = False,
        last_id_only: bool = False,
        loras: Adapter = None,
        return_last_state: bool = False,
        position_offsets: Any = None,
        abort_event: threading.Event | None = None,
        cpu_logits: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Logits of tokens [batch, tokens] that follow what is in the cache: float32 [batch, tokens, vocab].

        Only those of the last token ([batch, 1, vocab]) if `last_id_only`; `None` if `preprocess_only`, or if
        `abort_event` is set. `loras` is one adapter, or an ordered list of adapters or (adapter, weight)
        that all rows share. Rows are sequences of their own. `input_mask` [batch, n] (boolean, or additive as
        `tokenizer.padding_mask` returns it) marks padding on the left; its tokens are not computed, their logits are 0.
        `position_offsets` shift all positions of a row equally, which does not change a rotary embedding: they have no
        effect. Neither does `cpu_logits`.

        Ids from `EMBEDDING_INDEX` on stand for vectors: those of `indexed_embeddings`, an array [batch, n, hidden_size]
        or a list of `ExLlamaV2MMEmbedding`. With `return_last_state`, the result is a pair of the logits and what the
        last layer leaves to the final norm, float32 [batch, tokens, hidden_size], 0 for padding.
        """
        del position_offsets, cpu_logits
        embeddings = kwargs.pop("indexed_embeddings", None)
        embeddings = kwargs.pop("input_embeddings", None) if embeddings is None else embeddings
        warn_unknown("ExLlamaV2.forward", kwargs)
        rows = token_rows(input_ids)
        width = len(rows[0])
        if cache is None:
            cache = ExLlamaV2Cache(self, batch_size=len(rows), max_seq_len=width)
        begin = cache.current_seq_len
        _check_room(cache, len(rows), begin + width)
        if begin == 0:
            cache.padding = padding_of(input_mask, len(rows)) + [0] * (cache.batch_size - len(rows))
        for row, ids in enumerate(rows):
            leading = max(0, cache.padding[row] - begin)
            prompt = prompt_of(ids[leading:], indexed_embeddings(embeddings, row))
            ids[leading:] = cache.native().set_parts(row, begin + leading - cache.padding[row], prompt)
        logits = states = None
        if not preprocess_only:
            kept = 1 if last_id_only else width
            logits = np.zeros((len(rows), kept, self.native_model().vocab_size), dtype=np.float32)
        if return_last_state and not preprocess_only:
            states = np.zeros((len(rows), width, self.config.hidden_size), dtype=np.float32)
        chunk = max(1, self.config.max_input_len // len(rows))
        for start in range(0, width, chunk):
            if abort_event is not None and abort_event.is_set():
                return None
            end = min(start + chunk, width)
            wanted = range(end, end) if preprocess_only else range(width - 1 if last_id_only else start, end)
            logits = self._forward_columns(rows, begin, range(start, end), wanted, cache, loras, logits, states)
            cache.current_seq_len = begin + end
        if logits is None:
            return None
        return to_array(logits) if states is None else (to_array(logits), to_array(states))

    def forward_chunk(
        self,
        input_ids: Any,
        cache: ExLlamaV2CacheBase | None = None,
        input_mask: Any = None,
        preprocess_only: bool = False,
        last_id_only: bool = False,
        loras: Adapter = None,
        return_last_state: bool = False,
        position_offsets: Any = None,
        abort_event: threading.Event | None = None,
        attn_params: Any = None,
        extract_state_indices: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `forward`, as a dict with `logits`, and `last_state` if it is asked for."""
        refuse("ExLlamaV2.forward_chunk", attn_params=attn_params, extract_state_indices=extract_state_indices)
        result = self.forward(
            input_ids, cache, input_mask, preprocess_only, last_id_only, loras, return_last_state, position_offsets,
            abort_event, **kwargs,
        )  # fmt: skip
        if result is None:
            return {}
        return dict(zip(("logits", "last_state"), result, strict=True)) if return_last_state else {"logits": result}

    def _forward_columns(
        self,
        rows: list[list[int]],
        begin: int,
        columns: range,
        wanted: range,
        cache: ExLlamaV2CacheBase,
        loras: Adapter,
        logits: np.ndarray[Any, Any] | None,
        states: np.ndarray[Any, Any] | None,
    ) -> np.ndarray[Any, Any] | None:
        """Computes some columns of all rows in one step. Fills in the logits of the wanted ones and the last states.

        An adapter with a larger vocabulary makes the logits wider.
        """
        chunks: list[tuple[int, int, list[int], int]] = []
        places: list[tuple[int, int]] = []
        computed: list[tuple[int, int]] = []
        for row, ids in enumerate(rows):
            padding = cache.padding[row]
            first = max(columns.start, padding - begin)
            if first >= columns.stop:
                continue
            wanted_here = range(max(first, wanted.start), columns.stop)
            chunks.append((row, begin + first - padding, ids[first : columns.stop], len(wanted_here)))
            # Counted from the right, which is right whether all columns are returned or only the last.
            places += [(row, column - len(ids)) for column in wanted_here]
            computed += [(row, column) for column in range(first, columns.stop)]
        if not chunks:
            return logits
        if states is None:
            values = cache.native().forward(chunks, loras)
        else:
            values, last_states = cache.native().forward_with_last_states(chunks, loras)
            states[tuple(np.array(computed).T)] = last_states
        if logits is not None and places:
            if values.shape[1] != logits.shape[2]:
                logits = np.zeros((*logits.shape[:2], values.shape[1]), dtype=np.float32)
            logits[tuple(np.array(places).T)] = values
        return logits


def _check_room(cache: ExLlamaV2CacheBase, rows: int, tokens: int) -> None:
    if rows > cache.batch_size:
        raise _exlora.error(
            "request_invalid",
            "the cache has fewer sequences",
            expected=f"at most {cache.batch_size} rows",
            found=f"{rows} rows",
        )
    check_columns(cache, tokens, code="prompt_too_long")
