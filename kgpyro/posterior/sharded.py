"""A posterior whose entities are spread over processes: ranks, facts, answers and files, without the whole table."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as distributed
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.evaluation.ranking import at_once
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.runs import Run, check_writable_config, new_run_folder, start_run, write_rows
from kgpyro.program.families import is_gaussian
from kgpyro.program.owners import Share, is_spread

WHOLE = "`{}` needs the whole table of entities; where it fits, load the run on one machine, without `shard`."
# what of a posterior does not touch the whole table, or has it spread
KEPT = {
    "evaluate", "evaluation", "ranks", "facts", "answers", "predict", "modules", "forget", "prior_parameters", "other",
    "store_recalibration", "in_turn", "numbers", "drawn", "fact_logits", "tables_of", "refuse_categorical", "its_guide",
    "mean_scores",
}  # fmt: skip


def load(folder: str | Path, shard: bool = False, **own: Any) -> Posterior:
    """Read a saved run; see :meth:`kgpyro.Posterior.load`. With ``shard`` its entities are spread over processes."""
    return (ShardedPosterior if shard else Posterior).load(folder, **own)


class ShardedPosterior(Posterior):
    """A posterior of which each process has the rows of some entities.

    Every process calls each method, with the same arguments, and has the same result: it scores and ranks against its
    own rows, and counts are added up; of the best candidates of each process the best remain. Draws of an entity are
    the same in any number of processes. What needs the whole table raises InputError.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        refuse_no_shard(self)

    @property
    def share(self) -> Share:
        """What this process owns."""
        assert self.kg.share is not None
        return self.kg.share

    @property
    def kept(self) -> int:
        return 0  # draws of all latents: rows are drawn as they are asked for

    def check_form(self) -> None:
        """Raise InputError for a model without the standard likelihood of latents per symbol."""
        if self.form is None or self.form.per_fact:
            raise InputError("`shard` is for `model` lim, whose likelihood takes the latents as they are.")

    def _candidates(
        self, asked: Tensor, kept: int, draws: int, seed: int, new: bool, by: str, floor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The ``kept`` entities of the highest mean scores: each process's best, and of these the best."""
        if by == "all":
            return super()._candidates(asked, kept, draws, seed, new, by, floor)
        anchor, row = self._as_rows(asked)
        found, share, known = [], self.share, self.graph.known_queries
        for part in torch.arange(len(asked)).split(at_once(len(share))):
            scores = self.mean_scores(anchor[part], row[part], both=True)
            if new:
                rows, ids = known.answer_pairs(known.positions(anchor[part], row[part]))
                own = share.own(ids)
                scores[rows[own], ids[own] - share.first] = -math.inf
            values, ids = scores.topk(min(kept, len(share)))
            missing = (0, kept - values.shape[1])
            values = torch.nn.functional.pad(values, missing, value=-math.inf)
            values, ids = share.gathered(values), share.gathered(torch.nn.functional.pad(ids + share.first, missing))
            best = values.transpose(0, 1).flatten(1).topk(kept).indices
            found.append(ids.transpose(0, 1).flatten(1).gather(1, best))
        query = torch.arange(len(asked)).repeat_interleave(kept)
        return query, torch.cat(found).flatten(), torch.full((len(asked),), -1.0)

    def _answered(self, asked: Tensor, top: int | None, *options: Any, **more: Any) -> Any:
        self.refuse_categorical("answers and facts of a run that is spread")
        if top is None and bool((asked[:, 1] >= 0).any()):
            raise InputError(WHOLE.format("top=None"))
        return super()._answered(asked, top, *options, **more)

    def facts(self, *given: Any, **options: Any) -> Any:
        """As of any posterior; each process looks up the rows that the facts need."""
        self.refuse_categorical("answers and facts of a run that is spread")
        return super().facts(*given, **options)

    def save(self, folder: str | Path, overwrite: bool = False, unfinished: bool = False) -> None:
        """As of any posterior, with a file of each process's rows; it loads in any number of processes."""
        check_writable_config(self.config)
        folder = Path(folder) if unfinished or overwrite else new_run_folder(folder)
        self.share.barrier()  # every process has looked before one writes
        if self.share.rank == 0:
            start_run(folder, self.graph, self.config)
        self.share.barrier()
        state = {f"{part}.{k}": v for part, module in self.modules().items() for k, v in module.state_dict().items()}
        if self.share.processes > 1:
            rows = {key: state.pop(key) for key in list(state) if key.startswith("guide.") and is_spread(key)}
            write_rows(folder, rows, self.share.rank, self.share.processes)
        self.share.barrier()
        if self.share.rank == 0:
            run = Run(self.graph, self.config, self.metrics, self.log, state, self.provenance)
            run.write(folder, True, self.share.processes)
            self.store_recalibration(folder)
        self.share.barrier()

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", **own: Any) -> ShardedPosterior:
        """As :meth:`Posterior.load`, into the processes that there are, such as torchrun's: each reads its rows."""
        if str(device) != "cpu":
            raise InputError("a run is spread over processors; leave out `device`.")
        run = Run.read(folder)
        config = run.config | {"devices": 1, "nodes": 1}
        if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            distributed.init_process_group("gloo")
        if distributed.is_initialized():
            config["devices"] = distributed.get_world_size()
        share = share_of(config, run.graph.num_entities)
        return cast(ShardedPosterior, cls._of_run(run, folder, own, share))

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError("a posterior that is spread over processes cannot be pickled; save it to a folder.")


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Posterior, *_: Any, **__: Any) -> Any:
        raise InputError(WHOLE.format(name))

    return refuse


for _name, _ in inspect.getmembers(Posterior, callable):
    if not _name.startswith("_") and _name not in KEPT | vars(ShardedPosterior).keys():
        setattr(ShardedPosterior, _name, _refused(_name))


def share_of(config: Mapping[str, Any], entities: int) -> Share:
    """What this process owns. Raises InputError where there are fewer entities than processes, or others running."""
    processes, env = config["devices"] * config["nodes"], os.environ
    if distributed.is_initialized():
        rank, met = distributed.get_rank(), distributed.get_world_size()
    else:
        local = int(env.get("LOCAL_RANK", env.get("SLURM_PROCID", 0)))
        local += int(env.get("NODE_RANK", 0)) * config["devices"]
        rank, met = int(env.get("RANK", local)), processes
    if met != processes:
        raise InputError(f"`shard` runs in {met} processes here; set `devices` and `nodes` to that many.")
    if processes > entities:
        raise InputError(f"`shard` needs an entity for each of {processes} processes, and there are {entities}.")
    return Share(entities, rank, processes)


def refuse_no_option(config: Mapping[str, Any]) -> None:
    """Raise InputError for options of a fit that do not go with ``shard``."""
    wanted = {
        "model": ("lim",), "guide": ("lookup", "point"), "inference": ("svi",), "estimator": ("local", "shared"),
        "features": (None,), "relation_weight": (0,), "kl_frequency": (0,), "device": ("cpu", "auto"),
        "precision": ("32", "64", "bf16"), "resume": (None,), "start": (None,),
        "learn_by": ("gradients",), "finish": (None,),
    }  # fmt: skip
    for key, allowed in wanted.items():
        if config[key] not in allowed:
            raise InputError(
                f"`shard` does not go with `{key}` {config[key]}; it takes {' or '.join(map(str, allowed))}."
            )


def refuse_no_shard(posterior: Posterior) -> None:
    """Raise InputError where scores or priors need more than the rows of a process."""
    kg = posterior.kg
    if not (kg.score.linear and kg.score.multilinear):
        raise InputError(
            f"`shard` is for scores linear in each part, such as DistMult or ComplEx; not {kg.score.name}."
        )
    for kind in kg.families:
        prior = kg.symbol_prior(kind)
        if prior.latents or any(unknown.per == "symbol" for unknown in prior.unknown.values()):
            raise InputError(f"`shard` takes no {kind} prior whose parameters are latents, or one for each symbol.")
    fn = kg.symbol_prior("entity").distribution(kg.start, ...)
    if not is_gaussian(fn.expand([1])):
        raise InputError("`shard` is for a normal prior of entities; give `prior` normal.")
    posterior.check_form()
