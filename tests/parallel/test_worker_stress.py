"""200 generations with lanes and draft-ahead, abandoned, killed and restarted at random: no wrong token, no leak."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from helpers.processes import VOCAB, device_slots, eventually, is_running, open_file_count, remote_drafter, spec_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.model_builder import build_model
from pdevis.parallel.worker_pool import WorkerError, WorkerPool

RULES = [
    DraftConfig("exact"),
    DraftConfig("parallel", 0.3),
    DraftConfig("skip", 0.5),
    DraftConfig("skip", 0.5, "inline"),
]
GENERATIONS, KILLS = 200, 12


@pytest.mark.slow
def test_two_hundred_generations(tiny_folder):
    chance = random.Random(5)
    spec = spec_of(tiny_folder("llama", layers=5, seed=1))
    target = build_model(spec_of(tiny_folder("llama", layers=5)))
    kills = set(chance.sample(range(5, GENERATIONS), KILLS))
    workers, pids, errors = WorkerPool(spec, device_slots(2), target_vocab=VOCAB, min_ahead_probability=0.0), [], 0
    pids += [process.pid for process in workers.processes]
    files, memory = open_file_count(), psutil.Process().memory_info().rss
    for number in range(GENERATIONS):
        prompt = [chance.randrange(250) for _ in range(chance.randrange(2, 30))]
        config = DecodeConfig(24, chance.choice([1, 2, 4, "auto"]), eos_ids=(), overlap=chance.random() < 0.7)
        config = replace(config, reuse_prefix=chance.random() < 0.5)
        if chance.random() < 0.2:
            config = replace(config, temperature=1.0, seed=number)
        expected = [event.id for event in autoregressive(Verifier(target), prompt, config=config, stats=DecodeStats())]
        stop = chance.randrange(24) if chance.random() < 0.4 else 24
        drafter = remote_drafter(workers, chance.choice(RULES))
        events, ids = speculative(Verifier(target), drafter, prompt=prompt, config=config, stats=DecodeStats()), []
        try:
            if number in kills:
                ids += [next(events).id for _ in range(min(stop, 3))]
                os.kill(chance.choice(workers.processes).pid, signal.SIGKILL)
            while len(ids) < stop:
                ids.append(next(events).id)
        except StopIteration:
            pass
        except WorkerError:
            errors += 1
        finally:
            with suppress(WorkerError):
                events.close()
        assert not config.greedy or ids == expected[: len(ids)]
        if number in kills:
            workers.close()
            workers = WorkerPool(spec, device_slots(2), target_vocab=VOCAB, min_ahead_probability=0.0)
            pids += [process.pid for process in workers.processes]
        elif config.greedy:
            assert len(ids) == stop
    workers.close()
    assert errors >= KILLS / 2, "a killed rank goes unnoticed only if the generation has ended"
    assert eventually(lambda: not any(map(is_running, pids)))
    assert open_file_count() <= files + 2
    assert psutil.Process().memory_info().rss < memory + 150 * 2**20
