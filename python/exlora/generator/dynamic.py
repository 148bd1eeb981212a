"""`ExLlamaV2DynamicGenerator`: many jobs in one batch, each with its own adapters."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import exlora._exlora as _exlora
from exlora._unsupported import warn_unknown
from exlora.errors import ExloraError
from exlora.generator._common import mixture, open_engine, pair_of, prompt_ids
from exlora.generator.job import SET_LORAS, ExLlamaV2DynamicJob

if TYPE_CHECKING:
    from exlora.cache import ExLlamaV2CacheBase
    from exlora.generator.sampler import _Settings
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2DynamicGenerator"]


class ExLlamaV2DynamicGenerator:
    """Runs jobs in one continuous batch over the pages of `cache.max_seq_len` tokens.

    Prompts with a common prefix, under the same adapters and weights, share pages. Settings that choose among
    exllamav2's GPU code paths (`max_q_size`, sampling threads, `paged`, `filter_background_eval`) have no effect.
    """

    def __init__(
        self,
        model: ExLlamaV2,
        cache: ExLlamaV2CacheBase,
        tokenizer: ExLlamaV2Tokenizer,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_chunk_size: int | None = None,
        max_q_size: int = 8,
        draft_model: ExLlamaV2 | None = None,
        draft_cache: ExLlamaV2CacheBase | None = None,
        num_draft_tokens: int = 4,
        use_ngram_draft: bool = False,
        max_ngram: int = 4,
        max_sampling_threads: int = 16,
        min_sampling_threads: int = 3,
        paged: bool = True,
        filter_background_eval: bool = True,
        **kwargs: Any,
    ) -> None:
        del max_q_size, max_sampling_threads, min_sampling_threads, paged, filter_background_eval
        warn_unknown(type(self).__name__, kwargs)
        self.model = model
        self.cache = cache
        self.tokenizer = tokenizer
        self.max_seq_len = min(max_seq_len or cache.max_seq_len, model.config.max_seq_len)
        self.page_size = _exlora.PAGE_TOKENS
        self.draft_model = draft_model
        self.draft_cache = draft_cache
        self.num_draft_tokens = num_draft_tokens
        self.use_ngram_draft = use_ngram_draft
        self.max_ngram = max_ngram
        self.max_batch_size = max_batch_size or 32
        self.max_total_tokens = cache.max_seq_len
        #: Of the lists of jobs: a thread may iterate while another one enqueues.
        self._lock = threading.Lock()
        self.pending_jobs: list[ExLlamaV2DynamicJob] = []
        self.active_jobs: list[ExLlamaV2DynamicJob] = []
        self.current_loras: list[Any] = []
        self._failed: list[tuple[ExLlamaV2DynamicJob, ExloraError]] = []
        self._engine = open_engine(model, cache, tokenizer, max_batch_size, max_chunk_size, draft_model)
        self._serial = 0

    def set_loras(self, loras: Any = None) -> None:
        """Sets the adapters of jobs enqueued from now on; running jobs keep theirs.

        One adapter, an ordered list of adapters or (adapter, weight), or `None` for the base model.
        """
        self.current_loras = mixture(loras)

    def generate(
        self,
        prompt: str | tuple[str, str] | list[str | tuple[str, str]],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        seed: int | None = None,
        gen_settings: _Settings | list[_Settings] | None = None,
        token_healing: bool = False,
        encode_special_tokens: bool = False,
        decode_special_tokens: bool = False,
        stop_conditions: int | str | list[int | str] | None = None,
        add_bos: bool = False,
        abort_event: threading.Event | None = None,
        completion_only: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        return_last_results: bool = False,
        embeddings: Any = None,
        banned_strings: Any = None,
        loras: Any = SET_LORAS,
        **kwargs: Any,
    ) -> Any:
        """Prompt and continuation, or the continuation alone if `completion_only`; a list for a list of prompts.

        With each job's last result if `return_last_results`; `None` if `abort_event` is set. `loras` is
        exlora's own, for all prompts alike: see `ExLlamaV2DynamicJob`. A prompt may be a pair (prompt, negative
        prompt), for settings with a `cfg_scale`. `embeddings` are vectors whose text aliases the prompt contains; of
        several prompts, each has a list of its own.
        """
        loras = kwargs.pop("lora", loras)
        warn_unknown(f"{type(self).__name__}.generate", kwargs)
        prompts = prompt if isinstance(prompt, list) else [prompt]
        settings = gen_settings if isinstance(gen_settings, list) else [gen_settings] * len(prompts)
        if len(settings) != len(prompts):
            raise _exlora.error(
                "request_invalid", "gen_settings has another length than the prompts",
                expected=str(len(prompts)), found=str(len(settings)),
            )  # fmt: skip
        is_one = not isinstance(prompt, list)
        filter_lists = _lists_of_prompts("filters", filters, len(prompts), is_one=is_one)
        embeddings_lists = _lists_of_prompts("embeddings", embeddings, len(prompts), is_one=is_one)
        jobs: list[ExLlamaV2DynamicJob] = []
        pairs = [pair_of(one) for one in prompts]
        for i, pair in enumerate(pairs):
            adapters = self.current_loras if loras is SET_LORAS else mixture(loras)
            texts = [text for text in pair if text is not None]
            encoded = [
                prompt_ids(
                    self._engine, self.tokenizer, adapters, text, add_bos, encode_special_tokens, embeddings_lists[i]
                )[0]
                for text in texts
            ]
            job = ExLlamaV2DynamicJob(
                input_ids=encoded,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                gen_settings=settings[i],
                seed=None if seed is None else seed + i,
                stop_conditions=stop_conditions,
                decode_special_tokens=decode_special_tokens,
                filters=filter_lists[i],
                filter_prefer_eos=filter_prefer_eos,
                token_healing=token_healing,
                banned_strings=banned_strings,
                embeddings=embeddings_lists[i],
                loras=loras,
            )
            jobs.append(job)
        last = self._run(jobs, abort_event)
        if last is None:
            return None
        texts = [job.full_completion for job in jobs]
        if not completion_only:
            texts = [text + completion for (text, _), completion in zip(pairs, texts, strict=True)]
        if not isinstance(prompt, list):
            return (texts[0], last[0]) if return_last_results else texts[0]
        return (texts, last) if return_last_results else texts

    def _run(
        self, jobs: list[ExLlamaV2DynamicJob], abort_event: threading.Event | None
    ) -> list[dict[str, Any] | None] | None:
        """Runs jobs to their end and returns their last results. On any error, the jobs are cancelled."""
        last: dict[ExLlamaV2DynamicJob, dict[str, Any]] = {}
        try:
            self.enqueue(jobs)
            while not all(job.is_finished for job in jobs):
                last |= {result["job"]: result for result in self.iterate() if result["eos"]}
                if abort_event is not None and abort_event.is_set():
                    return None
        finally:
            for job in jobs:
                if not job.is_finished:
                    self.cancel(job)
        return [last.get(job) for job in jobs]

    def enqueue(self, job: ExLlamaV2DynamicJob | list[ExLlamaV2DynamicJob]) -> int | list[int]:
        """Queues one job and returns its serial number, or a list of them. Adapters are looked up now."""
        if isinstance(job, list):
            return [self._enqueue(one) for one in job]
        return self._enqueue(job)

    def _enqueue(self, job: ExLlamaV2DynamicJob) -> int:
        self.model.native_model()  # which raises where the model was unloaded
        serial = self._serial
        drafts = {"num_draft_tokens": self.num_draft_tokens, "max_ngram": self.max_ngram}
        # As in exllamav2, a draft model comes first.
        drafts["ngram_draft"] = self.use_ngram_draft and self.draft_model is None
        job.submit(self._engine, serial, self.current_loras, self.max_seq_len, drafts)
        self._serial += 1
        with self._lock:
            self.pending_jobs.append(job)
        return serial

    def iterate(self) -> list[dict[str, Any]]:
        """Computes one step for all jobs and returns their results.

        If a job fails, the next call raises its error. The other jobs go on.
        """
        if self.num_remaining_jobs():
            self.model.native_model()
        results: list[dict[str, Any]] = []
        if not self._failed:
            results, self._failed = self.advance()
        if self._failed and not results:
            job, error = self._failed.pop(0)
            job.cancel()
            raise error
        return results

    def advance(self) -> tuple[list[dict[str, Any]], list[tuple[ExLlamaV2DynamicJob, ExloraError]]]:
        """Computes one step for all jobs: their results, and the jobs that failed with their errors. See `iterate`."""
        now = time.perf_counter()
        if self.pending_jobs or self.active_jobs:
            with contextlib.suppress(ExloraError):  # then every job has that error
                self._engine.step()
        with self._lock:
            started = [job for job in self.pending_jobs if job.has_started]
            self.pending_jobs = [job for job in self.pending_jobs if job not in started]
            self.active_jobs += started
            active = list(self.active_jobs)
        results = [job.started(now) for job in started]
        failed: list[tuple[ExLlamaV2DynamicJob, ExloraError]] = []
        for job in active:
            try:
                results += job.collect()
            except ExloraError as error:
                failed.append((job, error))
        ended = {job for job, _ in failed} | {job for job in active if job.is_finished}
        with self._lock:
            self.active_jobs = [job for job in self.active_jobs if job not in ended]
        return results, failed

    def cancel(self, job: ExLlamaV2DynamicJob) -> None:
        """Ends a job; it has no further results."""
        job.cancel()
        with self._lock:
            self.pending_jobs = [other for other in self.pending_jobs if other is not job]
            self.active_jobs = [other for other in self.active_jobs if other is not job]
        self._failed = [(other, error) for other, error in self._failed if other is not job]

    def clear_queue(self) -> None:
        """Ends all jobs."""
        for job in self.pending_jobs + self.active_jobs + [job for job, _ in self._failed]:
            self.cancel(job)

    def num_remaining_jobs(self) -> int:
        """Jobs that are not finished."""
        return len(self.pending_jobs) + len(self.active_jobs) + len(self._failed)

    def warmup(self) -> None:
        """Generates a few tokens, so that the first real job is not slower."""
        self.model.native_model()
        self._engine.generate([_exlora.Request([0], max_new_tokens=2, stop_at_eos=False)])

    def reset_page_table(self) -> None:
        """Forgets all cached prefixes. Never needed for correctness: adapters do not share prefixes."""
        self._engine.clear_prefix_cache()


def _lists_of_prompts(name: str, values: Any, prompts: int, *, is_one: bool) -> list[Any]:
    """The filters or embeddings of each prompt: a list of them for one prompt, a list of such lists for several."""
    if not values:
        return [None] * prompts
    lists = [values] if is_one else values
    if len(lists) != prompts or not all(not one or isinstance(one, list) for one in lists):
        raise _exlora.error(
            "request_invalid", f"{name} has no list or None for each prompt", expected=str(prompts), found=repr(values)
        )
    return list(lists)
