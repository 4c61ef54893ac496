"""Several threads that compile and run at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch


@pytest.mark.slow
def test_threads_share_a_backend(small, plugin, taken):
    models = [small() for _ in range(3)]
    backend = plugin("inline")
    tag = torch.compiler.config.cache_key_tag
    barrier = threading.Barrier(4)
    shared = torch.compile(models[0][0], backend=backend)

    def work(i):
        model, inputs = models[i % 3]
        run = shared if i % 3 == 0 else torch.compile(model, backend=backend)
        barrier.wait(timeout=60)
        with torch.no_grad():
            return [run(**inputs)[0] for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    with torch.no_grad():
        for i, results in enumerate(found):
            model, inputs = models[i % 3]
            for y in results:
                torch.testing.assert_close(y, model(**inputs)[0], atol=1e-4, rtol=1e-4)
    assert torch.compiler.config.cache_key_tag == tag
    assert taken(backend)["qkv"] % 3 == 0
