"""`Engine`: a model, its adapters, and requests that choose among them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import exlora._exlora as _exlora
from exlora._exlora import AdapterInfo, Completion, Request, SamplingParams, Tokenizer
from exlora._requests import RequestBatch, batch_of, either, requests_of, samples_of
from exlora._stepper import Stepper
from exlora.as_completed import AsCompleted
from exlora.stream import Stream
from exlora.types import (
    Adapter,
    Adapters,
    FloatArray,
    OneRequestKeywords,
    PerPrompt,
    Progress,
    Prompt,
    RequestKeywords,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsCompleted", "Engine", "OnePrompt", "Stream", "shows_request_keywords"]

#: One of several prompts.
OnePrompt = TypeVar("OnePrompt", bound=Prompt | Request)

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_request_keywords(function: Function) -> Function:
    """Puts the keywords of a request, with their defaults, into the signature of a function that passes them on.

    They are written once, in the extension module's `Request` and `SamplingParams`.
    """
    signature = inspect.signature(function)
    parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
    for owner in (Request, SamplingParams):
        for parameter in inspect.signature(owner).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                parameters.setdefault(parameter.name, parameter)
    function.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    return function


class Engine:
    """A quantized base model and any number of LoRA adapters; each request names its own adapter or mixture.

    All methods may be called from any thread: requests of several threads run in one batch, and adapters can be loaded
    and unloaded meanwhile. Nothing runs in the background: a thread that waits for its result computes steps for all
    requests. An engine can be pickled; the copy loads the same model and adapters.

    model           folder with config.json and *.safetensors
    adapters        name -> folder of a PEFT LoRA adapter
    device          "auto" (the first CUDA card, else the CPU), "cpu", "cuda", "cuda:1", or "reference" (plain float32
                    math, slow)
    threads         CPU threads; all physical cores by default
    head            "stored", or "int8": an output head that is not quantized is rounded to 8 bits, which halves its
                    bytes and moves logits by about 0.6 % of their size
    activations     "f32", or "int8": quantized linears on the CPU round their inputs to 8 bits, with a scale for
                    every 32, which moves logits by about a percent of their size
    kv_dtype        "f16" or "f32"; or "q8", "q6" (keys of 8 bits, values of 4) or "q4", which take 0.53, 0.41 and 0.28
                    of f16's memory, and need heads that are a multiple of 16 wide
    max_seq_len     longest prompt and output together, in tokens; by default config.json's, with its rope scaling
    kv_tokens       tokens the KV cache holds over all requests; 8192 by default, or max_seq_len if that is more; memory
                    is committed as it is used; on CUDA what the card's free memory holds
    max_batch_size  requests that run at once; others wait
    prefill_chunk   largest number of prompt tokens in one step (chunked prefill)
    prefix_cache    whether cached prefixes of prompts are reused
    generation_config
                    "auto" makes the model folder's generation_config.json the defaults of all keywords, a path another
                    one; by default none is used except for its eos_token_id
    draft_model     folder of a smaller model with the same tokenizer, which drafts tokens that the model verifies:
                    faster where it guesses well, and never another token
    draft_adapters  name -> folder of a PEFT LoRA adapter for the draft model
    num_draft_tokens
                    largest number of tokens that a request drafts for a step, unless it says otherwise
    progress        True for a bar on stderr, or a callable (modules done, modules in total)
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        adapters: Mapping[str, str | PathLike[str]] | None = None,
        device: str = "auto",
        threads: int | None = None,
        head: str = "stored",
        activations: str = "f32",
        kv_dtype: str = "f16",
        max_seq_len: int | None = None,
        kv_tokens: int | None = None,
        max_batch_size: int = 32,
        prefill_chunk: int = 512,
        prefix_cache: bool = True,
        generation_config: str | PathLike[str] | None = None,
        draft_model: str | PathLike[str] | None = None,
        draft_adapters: Mapping[str, str | PathLike[str]] | None = None,
        num_draft_tokens: int = 4,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "head": head,
            "activations": activations,
            "kv_dtype": kv_dtype,
            "max_seq_len": max_seq_len,
            "kv_tokens": kv_tokens,
            "max_batch_size": max_batch_size,
            "prefill_chunk": prefill_chunk,
            "prefix_cache": prefix_cache,
            "generation_config": generation_config,
            "draft_model": draft_model,
            "num_draft_tokens": num_draft_tokens,
        }
        for name, folders in (("adapters", adapters), ("draft_adapters", draft_adapters)):
            if folders is not None and not isinstance(folders, Mapping):
                expected = "a mapping of name to folder, as in {'sql': 'adapters/sql'}"
                raise TypeError(f"{name} is {expected}, not {type(folders).__name__}")
        self._path = model
        engine = _exlora.Engine(model, progress=progress, **self._options)
        self._running: tuple[_exlora.Engine, Stepper] | None = (engine, Stepper(engine))
        self._defaults: dict[str, Any] = engine.request_defaults
        self._default_n: int | None = self._defaults.pop("n", None)
        for name, path in (adapters or {}).items():
            self.load_adapter(name, path)
        for name, path in (draft_adapters or {}).items():
            self.load_draft_adapter(name, path)

    @overload
    def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: None = None,
        return_errors: Literal[False] = False,
        progress: Progress = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: int,
        return_errors: Literal[False] = False,
        progress: Progress = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: None = None,
        return_errors: Literal[False] = False,
        progress: Progress = None,
        **keywords: Unpack[RequestKeywords],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int],
        return_errors: Literal[False] = False,
        progress: Progress = None,
        **keywords: Unpack[RequestKeywords],
    ) -> list[list[Completion]]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: None = None,
        return_errors: Literal[True],
        progress: Progress = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> Completion | Exception: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: int,
        return_errors: Literal[True],
        progress: Progress = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> list[Completion | Exception]: ...

    @overload
    def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: None = None,
        return_errors: Literal[True],
        progress: Progress = None,
        **keywords: Unpack[RequestKeywords],
    ) -> list[Completion | Exception]: ...

    @overload
    def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int],
        return_errors: Literal[True],
        progress: Progress = None,
        **keywords: Unpack[RequestKeywords],
    ) -> list[list[Completion | Exception]]: ...

    @shows_request_keywords
    def generate(
        self,
        prompts: Any,
        adapters: Any = None,
        *,
        adapter: Any = None,
        n: Any = None,
        return_errors: bool = False,
        progress: Any = None,
        **keywords: Any,
    ) -> Any:
        """Continues one prompt and returns a `Completion`, or several prompts and returns a list in the same order.

        A prompt is text, token ids (a list, or an array of numpy or torch), chat messages (a list of dicts), or vectors
        in place of token ids: `{"prompt_embeds": array}` of floats [tokens, hidden_size], as the model's embedding
        layer returns them, or a list of token ids and such arrays. No adapter changes these vectors. Several
        prompts are a list or another iterable of them, or a two-dimensional array. All run in one batch. `adapters` and
        every keyword take one value for all prompts, or a list with one value per prompt. Instead of prompts and
        keywords, a `Request` or several may be given.

        If a request is refused, none is run. If one fails, the others are run to their end; then the first error is
        raised, with `request_index`, and with all results in `results`. With `return_errors`, neither happens: each
        prompt has its completion or its exception in the list.

        n                    number of independent samples of each prompt; if given, or set by the engine's generation
                             config (num_return_sequences), a prompt's result is a list of them
        return_errors        whether an exception is returned in the place of its prompt's result, not raised
        progress             True for a bar on stderr, or a callable (prompts done, prompts in total)
        adapters             None for the base, a name, or an ordered mapping name -> weight; `adapter` is the same
        sampling             a `SamplingParams`; keywords given with it change it
        negative_prompt      another prompt, which the text is guided away from; for several prompts, one or a list
        cfg_scale            weight of the log-probabilities after the prompt where there is a negative prompt, whose
                             have 1 less it; 1 is the prompt alone
        max_new_tokens       largest number of new tokens; where the context or the KV cache ends before, so does the
                             text (`finish_reason="length"`). The longer of prompt and negative prompt decides
        min_new_tokens       stop tokens and stop strings do not end the text before this number of new tokens
        temperature          0 is greedy decoding
        top_k, top_p, min_p  keep the k best, the nucleus, the tokens of at least a share of the best one's probability
        top_a, tfs, typical  keep tokens by the squared probability of the best one, those before the tail, those of the
                             expected surprise
        mirostat             limits the surprise of tokens to a mean of `mirostat_tau` bits
        max_temp             dynamic temperature of what the filters left, from `min_temp` on
        temperature_last     whether the temperature acts after the filters
        xtc_probability      of leaving out all tokens above `xtc_threshold` but the least likely of them
        smoothing_factor     and skew: see `SamplingParams`, which has all settings
        repetition_penalty   on tokens of prompt and output, the last `repetition_range` of them if that is given
        frequency_penalty    and presence_penalty: on tokens of the output
        dry_multiplier       penalty on tokens that would continue a repetition
        logit_bias           id -> value added to its logit; -inf forbids it
        allowed_token_ids    the only ids that can be chosen
        seed                 of the random numbers; None draws one for each prompt: see `Completion.seed`
        stop                 ids and strings that end the text, one or a list; for several prompts it is one value per
                             prompt only if it is as long as the prompts and contains nothing but lists and None
        banned_strings       strings that the text does not contain, in any case, one or a list: where one is complete,
                             the text goes back to where it began and continues otherwise; for several prompts, as
                             `stop`
        stop_at_eos          whether the model's own end-of-sequence ids end the text
        logprobs             n >= 1 returns `logprobs` (of the chosen ids) and `top_logprobs` (of the n best)
        probs                n >= 1 returns `probs` and `top_probs`: probabilities after penalties and filters
        post_sampling_hooks  callables that get a `PostSampling` for each chosen token, and may replace it
        return_logits        whether to return the logits that each token was chosen from
        ngram_draft          whether tokens are drafted from prompt and output: what followed where the last tokens, up
                             to `max_ngram` of them, appeared before. Drafts change no token, only the number of steps
        num_draft_tokens     largest number of tokens drafted for a step, 0 for none; None is the engine's
        draft_adapters       adapters of the draft model, as `adapters`
        skip_special_tokens  whether special tokens are left out of the text
        add_special_tokens   whether the tokenizer adds its own special tokens (a BOS) to a text prompt
        json_schema          a dict or its text: the text is JSON that is valid under it; or one of the next four
        json_object          the text is a JSON object
        regex                the whole text matches this regular expression (Rust's syntax)
        grammar              the text is in the language of this grammar (Lark's syntax)
        gbnf                 the same, for a grammar in llama.cpp's GBNF
        choices              the text is one of these strings, one or a list; for several prompts, as `stop`
        filters              objects that choose the allowed tokens: `begin("")`, `next()` -> (allowed ids, ids that end
                             the text), `feed(id)`; for several prompts, as `stop`
        filter_prefer_eos    whether a token that ends the text is chosen as soon as the filters allow one
        token_healing        the first new token may be any whose text begins with that of the prompt's last token

        For chat messages, as transformers' `apply_chat_template` takes them:

        tools, documents        lists of dicts for the model's chat template; for several prompts, as `stop`
        chat_template           the name of a template of the model, or the text of another one
        chat_template_kwargs    a dict with other variables of the template, like `{"enable_thinking": False}`
        continue_final_message  True: the model continues the last message instead of starting its own
        add_generation_prompt   whether the prompt ends with the start of an answer; by default, unless it continues
        """
        batch = self.request_batch(prompts, adapters, adapter, n, keywords, return_errors=return_errors)
        valid = batch.valid()
        found = self._native.generate(
            [request for _, request in valid],
            [batch.samples(i) for i, _ in valid],
            run_none_if_refused=not return_errors,
            progress=progress,
        )
        results: dict[int, list[Completion | Exception]] = {
            i: list(samples) for (i, _), samples in zip(valid, found, strict=True)
        }
        return batch.shaped(results, return_errors=return_errors)

    def request_batch(
        self, prompts: Any, adapters: Any, adapter: Any, n: Any, keywords: Mapping[str, Any], *, return_errors: bool
    ) -> RequestBatch:
        """The arguments of `generate` as requests. For `AsyncEngine`."""
        values = {"adapter": either(adapters, adapter), **keywords}
        n = self._default_n if n is None else n
        return RequestBatch.of(prompts, values, self._defaults, n, return_errors=return_errors)

    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | Request],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int] | None = None,
        return_errors: Literal[False] = False,
        **keywords: Unpack[RequestKeywords],
    ) -> AsCompleted[Completion]: ...

    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | Request],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int] | None = None,
        return_errors: Literal[True],
        **keywords: Unpack[RequestKeywords],
    ) -> AsCompleted[Completion | Exception]: ...

    @shows_request_keywords
    def as_completed(
        self,
        prompts: Any,
        adapters: Any = None,
        *,
        adapter: Any = None,
        n: Any = None,
        return_errors: bool = False,
        **keywords: Any,
    ) -> Any:
        """Continues many prompts and yields `(index, completion)` as each completes; also for `async for`.

        Takes what `generate` takes for several prompts, and iterables of any length: at most twice `max_batch_size`
        prompts are taken ahead of the results. With `n` samples, there are `n` pairs with a prompt's index, told apart
        by `Completion.sample`. An error is raised in the place of its result, after which the iteration can go on; with
        `return_errors` it is yielded. What is wrong with one prompt harms no other.
        """
        batch = batch_of(prompts)
        is_one = batch is None
        batch = [prompts] if is_one else batch
        values = {"adapter": either(adapters, adapter), **keywords}
        requests = requests_of(batch, values, self._defaults, is_one=is_one)
        samples = samples_of(self._default_n if n is None else n, batch, is_one=is_one)
        return self.results_of(requests, samples, return_errors=return_errors)

    def results_of(
        self, requests: Iterator[Request | Exception], samples: Callable[[int], int], *, return_errors: bool
    ) -> AsCompleted[Any]:
        """The results of requests as they complete; `samples` is each one's number of samples by its index."""
        return AsCompleted(*self._opened(), requests, samples, return_errors=return_errors)

    def check_requests(self, requests: list[Request]) -> None:
        """Raises the error of the first request that would be refused, with its `request_index`."""
        self._native.check(requests)

    @shows_request_keywords
    def stream(
        self,
        prompt: Prompt | Request,
        adapter: Adapter = None,
        *,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> Stream:
        """Continues one prompt piece by piece. Takes what `generate` takes for one prompt.

        The texts of all chunks joined are the text of `generate`. The stream is an iterator and an async iterator.
        """
        values = {"adapter": adapter, "sampling": sampling, **keywords}
        [request] = requests_of([prompt], values, self._defaults, is_one=True)
        if isinstance(request, Exception):
            raise request
        engine, stepper = self._opened()
        return Stream(engine.submit(request), stepper)

    def logits(self, prompt: Prompt, adapter: Adapter = None) -> FloatArray:
        """Logits of every position of a prompt under a mixture, float32 [tokens, vocab]."""
        return self._native.logits(prompt, adapter)

    def load_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter, or replaces the one of that name. Running requests keep the version they have."""
        return self._native.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Unloads an adapter. Running requests keep it. A name that is not loaded is an error."""
        self._native.unload_adapter(name)

    def adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, sorted by name. Never waits for a step."""
        return self._native.adapters()

    def load_draft_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter of the draft model, for the `draft_adapters` of requests. As `load_adapter` otherwise."""
        return self._native.load_draft_adapter(name, path)

    def unload_draft_adapter(self, name: str) -> None:
        """Unloads an adapter of the draft model, as `unload_adapter`."""
        self._native.unload_draft_adapter(name)

    def draft_adapters(self) -> list[AdapterInfo]:
        """The loaded adapters of the draft model, sorted by name."""
        return self._native.draft_adapters()

    def stats(self) -> dict[str, int]:
        """Counters and resident bytes. Never waits for a step: while one runs, the counters are as before it."""
        return self._native.stats()

    def clear_prefix_cache(self) -> None:
        """Forgets all cached prefixes."""
        self._native.clear_prefix_cache()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's folder."""
        return self._native.tokenizer

    def tokenizer_for(self, adapter: Adapter) -> Tokenizer:
        """The tokenizer of requests with these adapters: the first adapter's that brings one, else the model's."""
        return self._native.tokenizer_for(adapter)

    @property
    def device(self) -> str:
        """What computes: `cpu (avx512, 2 threads)`."""
        return self._native.model.device

    def close(self) -> None:
        """Closes the engine. Running streams keep the model until they end."""
        self._running = None

    @property
    def max_seq_len(self) -> int:
        """Positions that prompt and output together can have: the model's, or the KV cache's if that is smaller."""
        return self._native.max_tokens

    @property
    def _native(self) -> _exlora.Engine:
        return self._opened()[0]

    def _opened(self) -> tuple[_exlora.Engine, Stepper]:
        if self._running is None:
            raise _exlora.error("model_not_loaded", "the engine is closed", hint="make a new Engine")
        return self._running

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        loaded = {"adapters": self.adapters(), "draft_adapters": self.draft_adapters()}
        folders = {name: {info.name: info.path for info in infos} for name, infos in loaded.items()}
        return _open, (self._path, {**self._options, **folders})

    def __repr__(self) -> str:
        if self._running is None:
            return f"Engine({str(self._path)!r}, closed)"
        return (
            f"Engine({str(self._path)!r}, device={self.device!r}, adapters={[info.name for info in self.adapters()]})"
        )


def _open(path: str | PathLike[str], options: dict[str, Any]) -> Engine:
    """Unpickles an engine."""
    return Engine(path, **options)
