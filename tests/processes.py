"""Two real gloo processes, forked so that nothing is imported again."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def _work(rank: int, rendezvous: str, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
        result = torch.utils._pytree.tree_map(
            lambda v: v.detach().numpy() if isinstance(v, torch.Tensor) else v, function(rank, *args)
        )
        results.put((rank, result, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def in_two_processes(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call function(rank, *args) in two processes of one gloo group; give both results, by rank."""
    # With a GPU, autograd does not outlive a fork.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_work, args=(rank, f"{folder}/rendezvous", results, function, args))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        received = [results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(timeout=30)
    for _, _, trouble in received:
        assert trouble is None, trouble
    as_tensors = {
        rank: torch.utils._pytree.tree_map(lambda v: torch.from_numpy(v) if hasattr(v, "dtype") else v, result)
        for rank, result, _ in received
    }
    return [as_tensors[0], as_tensors[1]]
