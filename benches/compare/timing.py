"""What the benchmarks of other engines share: the timed part, and the JSON line that each prints.

Every benchmark prints: engine, model, threads, load_s, file_mib, peak_rss_mib, loadavg, and for each variant
(base, lora) prefill_tps and decode_tps. `interleave.py` runs many such commands interleaved and prints the table.
"""

import json
import resource
import time


def timed(call, count):
    start = time.perf_counter()
    for i in range(count):
        call(i)
    return time.perf_counter() - start


def measured(use, clear, prefill, step, prompt, decode, has_lora, rounds):
    """use(lora) switches the adapter; clear() empties the cache; prefill(n) feeds n tokens; step(i) decodes one token.

    Decode continues after the prompt, as in `exlora bench`. Both variants share the cache that the last prompt filled:
    its length affects speed, its contents do not. It grows to prompt + 2 * (decode + 8) tokens.
    """
    variants = ["base", "lora"] if has_lora else ["base"]
    out = {v: {"prefill_tps": [], "decode_tps": []} for v in variants}
    for v in variants:  # warm up both graphs and all pages
        use(v == "lora")
        clear()
        prefill(16)
        timed(step, 2)
    for _ in range(rounds):
        for v in variants:
            use(v == "lora")
            clear()
            out[v]["prefill_tps"].append(prompt / timed(lambda _: prefill(prompt), 1))
        for _part in range(4):  # base and lora alternate in short parts, so that a slow spell affects both
            for v in variants:
                use(v == "lora")
                timed(step, 2)
                out[v].setdefault("parts", []).append((decode // 4) / timed(step, decode // 4))
    for v in variants:
        parts = sorted(out[v].pop("parts"))
        out[v]["decode_tps"] = parts[len(parts) // 2]
        out[v]["prefill_tps"] = sorted(out[v]["prefill_tps"])[rounds // 2]
    return out


def line(head, variants):
    with open("/proc/loadavg") as f:
        load = float(f.read().split()[0])
    print(
        json.dumps(
            {
                **head,
                **variants,
                "loadavg": load,
                "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        ),
        flush=True,
    )
