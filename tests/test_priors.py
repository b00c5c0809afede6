"""Priors by name, call, object and path; their posterior families; what is refused and how."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import biject_to, kl_divergence
from torch.distributions.transforms import AffineTransform, ExpTransform

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.display import as_html
from kgpyro.errors import InputError
from kgpyro.names import STANDARD
from kgpyro.program.catalogue import Parameter, parameters_of
from kgpyro.program.families import (
    Family,
    HypersphericalUniform,
    PowerSpherical,
    ProjectedNormal,
    family_for,
    posterior_mean,
    posterior_variance,
)
from kgpyro.program.n3 import N3, ComplexN3
from kgpyro.program.priors import Prior, PriorLike, prior_table, resolve_prior

SIZE, EVEN = 5, 6


class MyPrior(dist.Normal):
    """A user's own prior class, standard by default."""

    def __init__(self, loc: float = 1.0, scale: float = 2.0, validate_args: bool | None = None):
        super().__init__(loc, scale, validate_args=validate_args)


def my_prior_of_size(size: int) -> TorchDistribution:
    return dist.MultivariateNormal(torch.zeros(size), torch.eye(size))


@pytest.mark.parametrize("name", STANDARD)
def test_every_name_gives_a_prior_and_a_family(name: str) -> None:
    prior = resolve_prior(name)
    p = prior.distribution(EVEN)
    assert p.event_shape == (EVEN,)
    family = prior.family(EVEN)
    q = family(torch.randn(3, family.loc_size(EVEN)), torch.full((3, family.scale_size(EVEN)), 0.5).log())
    assert (q.batch_shape, q.event_shape) == ((3,), (EVEN,))
    drawn = q.rsample()
    assert p.support.check(drawn).all()
    assert p.log_prob(drawn).isfinite().all()
    assert p.log_prob(p.sample()).isfinite().all()


def test_the_table_of_all_names() -> None:
    """Against ``prior_table.md``, checked by eye when it was written."""
    known = (Path(__file__).parent / "prior_table.md").read_text(encoding="utf-8").splitlines()
    assert prior_table().splitlines() == known
    assert [row.split(" ")[1] for row in known[2:]] == list(STANDARD)


def test_the_required_families_are_there() -> None:
    required = {"normal", "laplace", "student_t", "cauchy", "gumbel", "log_normal", "gamma", "half_normal", "uniform"}
    required.add("hyperspherical_uniform")
    assert required <= set(STANDARD)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal", dist.Normal(0.0, 1.0)),
        ("laplace(scale=0.5)", dist.Laplace(0.0, 0.5)),
        ("student_t(df=4)", dist.StudentT(4.0)),
        ("StudentT(df=3, scale=2)", dist.StudentT(3.0, 0.0, 2.0)),
        ("uniform(low=-2, high=3)", dist.Uniform(-2.0, 3.0)),
        (f"{__name__}:MyPrior", dist.Normal(1.0, 2.0)),
        (dist.Cauchy(0.0, 2.0), dist.Cauchy(0.0, 2.0)),
        (MyPrior, dist.Normal(1.0, 2.0)),
        (f"{__name__}:LEARNED", dist.Normal(0.0, 1.0)),
        (lambda size: dist.Normal(torch.zeros(size), 3.0).to_event(1), dist.Normal(0.0, 3.0)),
    ],
)
def test_ways_of_giving_a_prior(text: object, expected: TorchDistribution) -> None:
    prior = resolve_prior(text)  # type: ignore[arg-type]
    value = expected.sample((SIZE,))
    assert float(prior.distribution(SIZE).log_prob(value)) == pytest.approx(
        float(expected.log_prob(value).sum()), rel=1e-5
    )


def test_a_multivariate_prior() -> None:
    assert resolve_prior(dist.Dirichlet).distribution(SIZE).concentration.tolist() == [1.0] * SIZE
    assert resolve_prior(f"{__name__}:LEARNED").unknown == LEARNED.unknown
    prior = resolve_prior(f"{__name__}:my_prior_of_size")
    assert prior.distribution(SIZE).event_shape == (SIZE,)
    fixed = resolve_prior(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
    with pytest.raises(InputError, match=r"events of shape \(3,\); the latents need \(5,\)"):
        fixed.distribution(SIZE)


def slab_and_spike(size: int) -> TorchDistribution:
    """A mixture with its components fixed: every other coordinate is close to zero."""
    near, far = dist.Normal(torch.zeros(size), 0.1), dist.Normal(torch.zeros(size), 2.0)
    return dist.MaskedMixture(torch.arange(size) % 2 == 0, near, far).to_event(1)


def log_laplace(size: int) -> TorchDistribution:
    return dist.TransformedDistribution(dist.Laplace(torch.zeros(size), 1.0), [ExpTransform()]).to_event(1)


def shifted(size: int) -> TorchDistribution:
    return dist.TransformedDistribution(
        dist.Laplace(torch.zeros(size), 1.0), [AffineTransform(torch.full((size,), 0.5), torch.tensor(2.0))]
    ).to_event(1)


LEARNED = resolve_prior("normal(scale=learn)")
TEXT = "normal"


@pytest.mark.parametrize(
    ("name", "support"), [("slab_and_spike", constraints.real), ("log_laplace", constraints.positive)]
)
def test_transformed_and_mixed_priors(tiny: Graph, name: str, support: constraints.Constraint) -> None:
    posterior = kgpyro.fit(tiny, model="lim", prior=f"{__name__}:{name}", dim=4, epochs=3, progress=False)
    assert posterior.kg.family("entity").support is support
    assert math.isfinite(posterior.metrics["elbo_per_fact"])


@pytest.mark.parametrize(
    ("text", "shape", "check"),
    [
        ("multivariate_normal(scale_tril=2)", "covariance_matrix", 4 * torch.eye(SIZE)),
        ("multivariate_normal(covariance_matrix=2)", "covariance_matrix", 2 * torch.eye(SIZE)),
        ("multivariate_normal(loc=[1, 2, 3, 4, 5])", "mean", torch.arange(1.0, 6.0)),
        ("dirichlet(concentration=0.5)", "concentration", torch.full((SIZE,), 0.5)),
        ("low_rank_multivariate_normal(cov_factor=1, cov_diag=2)", "variance", torch.full((SIZE,), 3.0)),
        ("mixture_of_diag_normals(locs=[-2, 0, 2], component_logits=[0, 0, 0])", "locs", torch.tensor([-2.0, 0, 2.0])),
    ],
)
def test_numbers_in_multivariate_calls(text: str, shape: str, check: torch.Tensor) -> None:
    found = getattr(resolve_prior(text).distribution(SIZE), shape)
    torch.testing.assert_close(found[:, 0] if shape == "locs" else found, check)


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        (
            "relaxed_one_hot_categorical(probs=[1, 2, 3, 4, 10])",
            {},
            dist.RelaxedOneHotCategorical(torch.tensor(1.0), torch.tensor([0.05, 0.1, 0.15, 0.2, 0.5])),
        ),
        (
            "dirichlet(concentration=learn_per_symbol)",
            {"concentration": rows(0.5, 2.0)},
            dist.Dirichlet(torch.stack([torch.full((5,), 0.5), torch.full((5,), 2.0)])),
        ),
        (
            "dirichlet(concentration=learn_per_dim)",
            {"concentration": torch.arange(1.0, 6.0)},
            dist.Dirichlet(torch.arange(1.0, 6.0)),
        ),
        (
            "multivariate_normal(scale_tril=learn_per_symbol)",
            {"scale_tril": rows(0.5, 2.0)},
            dist.MultivariateNormal(torch.zeros(5), scale_tril=torch.stack([0.5 * torch.eye(5), 2 * torch.eye(5)])),
        ),
        (
            "multivariate_normal(scale_tril=learn_per_dim)",
            {"scale_tril": torch.arange(1.0, 6.0)},
            dist.MultivariateNormal(torch.zeros(5), scale_tril=torch.arange(1.0, 6.0).diag()),
        ),
        (
            "multivariate_normal(scale_tril=[[1,0,0,0,0],[2,1,0,0,0],[0,0,1,0,0],[0,0,0,3,0],[0,0,0,0,1]])",
            {},
            dist.MultivariateNormal(
                torch.zeros(5),
                scale_tril=torch.tensor([1.0, 1, 1, 3, 1]).diag() + 2.0 * (torch.arange(25) == 5).reshape(5, 5),
            ),
        ),
        (
            "mixture_of_diag_normals(locs=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], coord_scale=[[1,2,3,4,5], [5,4,3,2,1]])",
            {},
            dist.MixtureOfDiagNormals(
                torch.arange(10.0).reshape(2, 5),
                torch.stack([torch.arange(1.0, 6.0), torch.arange(1.0, 6.0).flip(0)]),
                torch.zeros(2),
            ),
        ),
        (
            "mixture_of_diag_normals_shared_covariance(locs=[-1, 2], coord_scale=3)",
            {},
            dist.MixtureOfDiagNormalsSharedCovariance(
                torch.tensor([[-1.0], [2.0]]).expand(2, 5), torch.full((5,), 3.0), torch.zeros(2)
            ),
        ),
        (
            "mixture_of_diag_normals(locs=[2], component_logits=[0])",
            {},
            dist.MixtureOfDiagNormals(torch.full((1, 5), 2.0), torch.full((1, 5), 0.5), torch.zeros(1)),
        ),
        (
            "student_t(df=learn_per_dim, scale=learn_per_symbol)",
            {"df": torch.arange(1.0, 6.0), "scale": rows(0.5, 2.0)},
            dist.StudentT(torch.arange(1.0, 6.0), 0.0, rows(0.5, 2.0)).to_event(1),
        ),
    ],
)
def test_parameters_take_their_families_shape(
    text: str, values: dict[str, torch.Tensor], expected: TorchDistribution
) -> None:
    found = resolve_prior(text).distribution(SIZE, values=values)
    assert (found.batch_shape, found.event_shape) == (expected.batch_shape, expected.event_shape)
    drawn = expected.sample()
    torch.testing.assert_close(found.log_prob(drawn), expected.log_prob(drawn))


def test_the_projected_normals_density() -> None:
    """It integrates to one, and where pyro knows it, it is pyro's."""
    torch.set_default_dtype(torch.float64)
    try:
        uniform = HypersphericalUniform(5).sample((200_000,)).to(torch.float64)
        density = ProjectedNormal(torch.tensor([1.0, -0.5, 0.3, 0.0, 0.2])).log_prob(uniform).exp()
        area = float(-HypersphericalUniform(5).log_prob(uniform[:1]))
        assert float(density.mean()) * math.exp(-area) ** -1 == pytest.approx(1.0, rel=0.01)
    finally:
        torch.set_default_dtype(torch.float32)
    c = torch.randn(3)
    value = dist.ProjectedNormal(c).sample((4,))
    torch.testing.assert_close(ProjectedNormal(c).log_prob(value), dist.ProjectedNormal(c).log_prob(value))


def test_a_projected_normal_of_pyros_is_given_its_density_in_any_dimension() -> None:
    c = torch.randn(SIZE)
    value = HypersphericalUniform(SIZE).sample()
    found = resolve_prior(dist.ProjectedNormal(c)).distribution(SIZE).log_prob(value)
    torch.testing.assert_close(found, ProjectedNormal(c).log_prob(value))


@pytest.mark.parametrize(
    "prior", [dist.Laplace(0.0, 0.5), dist.Gamma(2.0, 3.0), dist.StudentT(3.0, 1.0, 2.0), HypersphericalUniform(4)]
)
def test_objects_that_a_call_can_stand_for(prior: TorchDistribution) -> None:
    text = resolve_prior(prior).text
    assert text is not None
    again = resolve_prior(text).distribution(4)
    value = again.sample()
    assert float(again.log_prob(value)) == pytest.approx(float(resolve_prior(prior).distribution(4).log_prob(value)))


def test_a_prior_follows_device_and_dtype() -> None:
    like = torch.zeros((), dtype=torch.float64)
    for name in ("normal", "log_normal", "gumbel", "uniform", "hyperspherical_uniform", "half_cauchy"):
        assert resolve_prior(name).distribution(EVEN, like).sample().dtype == torch.float64, name
    for built in (slab_and_spike, log_laplace, shifted):
        p = resolve_prior(built).distribution(SIZE, like)
        assert p.sample().dtype == torch.float64
        torch.testing.assert_close(
            p.log_prob(torch.ones(SIZE, dtype=like.dtype)).float(), built(SIZE).log_prob(torch.ones(SIZE))
        )
    assert resolve_prior(slab_and_spike).distribution(SIZE, like).base_dist.mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("laplace(", "does not parse ('(' was never closed); write"),
        ("normal(**{})", "does not parse (it is no call of a family by name); write a name or a call"),
        ("normal()(2)", "does not parse (it is no call of a family by name); write a name or a call"),
        ("laplace(0, 1, 2)", "Laplace has only loc, scale"),
        ("laplace(scale=two)", "unknown prior 'two'"),
        ("laplace(scale=1 + 1)", "1 + 1 is no number"),
        ("normal(scale=learn(-1))", "prior normal(scale=learn(-1)): scale cannot start at -1."),
        ("normal(loc=half_cauchy, scale=-1)", "prior normal(loc=half_cauchy, scale=-1): "),
        ("normal(scale=laplace)", "scale is positive, but laplace is not"),
        ("normal(scale=per_dim())", "per_dim takes one prior"),
        ("normal(scale=half_cauchy(per_symbol(gamma)))", "is per symbol, but scale is not"),
        ("pareto(scale=learn)", "prior pareto(scale=learn): the support of Pareto depends on scale"),
        ("uniform(low=learn)", "low of Uniform cannot be learned"),
        ("laplace(sigma=2)", "no parameter 'sigma'; Laplace has loc, scale"),
        ("normal(scale=-1)", "scale"),
        ("normal; import os", "does not parse"),
        ("poisson", "Poisson is not reparameterisable"),
        ("bernoulli", "Bernoulli is not reparameterisable"),
        ("normal(scale=lern)", "did you mean 'learn'?"),
        ("nromal", "did you mean 'normal'?"),
        ("wishart", "Wishart has no standard member"),
        ("transformed_distribution", "TransformedDistribution has no standard member"),
        ("hyperspherical_uniform(dim=3)", "no parameters"),
        ("no.such:thing", "prior no.such:thing: module 'no.such' cannot be imported"),
        (f"{__name__}:nothing", "has no 'nothing'"),
        (f"{__name__}:SIZE", "a prior is a name"),
        (f"{__name__}:TEXT", f"prior {__name__}:TEXT is a string, not a distribution."),
    ],
)
def test_unusable_names(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_prior(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_in_the_order_of_the_call() -> None:
    real, positive, unit = constraints.real, constraints.positive, constraints.unit_interval
    assert parameters_of("gamma") == {
        "concentration": Parameter(2.0, positive),
        "rate": Parameter(1.0, positive),
    }
    assert list(parameters_of("gamma")) == ["concentration", "rate"]
    assert list(parameters_of("student_t")) == ["df", "loc", "scale"]
    assert parameters_of("Normal") == {"loc": Parameter(0.0, real), "scale": Parameter(1.0, positive)}
    assert parameters_of("uniform") == {"low": Parameter(-1.0, None), "high": Parameter(1.0, None)}
    assert parameters_of("relaxed_bernoulli") == {
        "temperature": Parameter(1.0, None),
        "probs": Parameter(0.5, unit),
    }
    assert parameters_of("multivariate_normal")["scale_tril"] == Parameter(1.0, positive)
    assert parameters_of("mixture_of_diag_normals").keys() == {"coord_scale"}
    assert parameters_of("hyperspherical_uniform") == {}
    with pytest.raises(InputError, match="unknown prior 'nromal'"):
        parameters_of("nromal")


@pytest.mark.parametrize(
    ("text", "key", "start"),
    [
        ("normal(scale=learn)", "scale", 1.0),
        ("normal(scale=learn_per_dim(0.25))", "scale", 0.25),
        ("gamma(concentration=learn)", "concentration", 2.0),
        ("student_t(df=learn)", "df", 4.0),
        ("continuous_bernoulli(probs=learn)", "probs", 0.5),
        ("continuous_bernoulli(logits=learn)", "logits", 0.0),
        ("multivariate_normal(covariance_matrix=learn)", "covariance_matrix", 1.0),
        ("gamma(concentration=half_cauchy)", "concentration", 2.0),
        ("normal(scale=per_symbol(half_cauchy(scale=half_cauchy(scale=0.1))))", "scale", 1.0),
        ("normal(scale=per_dim(gamma))", "scale", 1.0),
    ],
)
def test_where_an_unknown_parameter_starts(text: str, key: str, start: float) -> None:
    prior = resolve_prior(text)
    assert prior.text == text
    assert prior.unknown[key].start == start
    assert prior.unknown[key].constraint is {"probs": constraints.unit_interval, "logits": constraints.real}.get(
        key, constraints.positive
    )
    like = resolve_prior(f"{text.split('(')[0]}({key}={start})").distribution(SIZE)
    value = like.sample()
    torch.testing.assert_close(prior.distribution(SIZE).log_prob(value), like.log_prob(value))


def test_positive_is_what_bounds_its_support_at_zero_or_above() -> None:
    for within in ("pareto", "uniform(low=0, high=2)", "gamma", "beta", "uniform(low=0.5, high=2)"):
        assert resolve_prior(f"normal(scale={within})").unknown["scale"].prior is not None
    for outside in ("uniform", "uniform(low=-0.1, high=1)", "normal", "dirichlet"):
        with pytest.raises(InputError, match=rf"scale is positive, but {outside.split('(')[0]}.* is not; half_cauchy"):
            resolve_prior(f"normal(scale={outside})")


def test_a_prior_of_a_parameter() -> None:
    like = torch.zeros((), dtype=torch.float64)
    prior = resolve_prior("gamma(concentration=3, rate=half_cauchy)")
    value = prior.value((4, 1), like, {"rate": torch.tensor(5.0, dtype=torch.float64)})
    assert (value.batch_shape, value.event_shape) == ((), (4, 1))
    drawn = value.sample()
    assert drawn.dtype == torch.float64
    expected = dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 5.0).log_prob(drawn).sum()
    torch.testing.assert_close(value.log_prob(drawn), expected)
    scale = torch.tensor(0.1, dtype=torch.float64)
    learned = LEARNED.distribution(SIZE, values={"scale": scale}).base_dist.scale
    assert learned.dtype == torch.float64 and learned[0] == scale
    assert resolve_prior("half_cauchy(2)").value((), like, {}).sample().dtype == torch.float64
    with pytest.raises(InputError) as caught:
        resolve_prior("dirichlet").value((4, 1), like, {})
    assert str(caught.value) == "prior Prior(dirichlet) of a parameter must be univariate."


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        (dist.Laplace(0.0, 0.5), "laplace(loc=0.0, scale=0.5)"),
        (dist.Gamma(2.0, 3.0), "gamma(concentration=2.0, rate=3.0)"),
        (dist.Normal(torch.zeros(3), 1.0), None),
        (MyPrior(), None),
        (dist.Normal(0.0, 1.0).expand((3,)).to_event(1), None),
        (HypersphericalUniform(4), "hyperspherical_uniform"),
        (dist.ContinuousBernoulli(0.25), "continuous_bernoulli(probs=0.25)"),
        (dist.RelaxedBernoulli(0.5, logits=torch.tensor(0.0)), "relaxed_bernoulli(temperature=0.5, probs=0.5)"),
        (dist.MultivariateNormal(torch.zeros(1), torch.eye(1)), "multivariate_normal(loc=0.0, scale_tril=1.0)"),
    ],
)
def test_the_text_of_an_object(prior: TorchDistribution, text: str | None) -> None:
    assert resolve_prior(prior).text == text
    if text is not None:
        assert resolve_prior(text).text == text


def counted(size: int) -> TorchDistribution:
    return dist.Poisson(torch.ones(size))


def test_numbers_are_checked_even_where_pyro_checks_nothing() -> None:
    with pyro.validation_enabled(False):
        with pytest.raises(InputError, match=r"^prior normal\(scale=-1\): Expected parameter scale .* of distribution"):
            resolve_prior("normal(scale=-1)")
        prior = resolve_prior("normal(scale=learn)")
        assert prior.distribution(SIZE, values={"scale": torch.tensor(-1.0)}).base_dist.scale[0] == -1  # at each step


def distributions_in(value: object) -> list[TorchDistribution]:
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in distributions_in(each)]
    if not isinstance(value, torch.distributions.Distribution):
        return []
    return [value, *distributions_in(list(vars(value).values()))]


@pytest.mark.parametrize(
    "prior",
    [*STANDARD, "normal(scale=learn_per_symbol)", MyPrior(), dist.Normal(0.0, 1.0), slab_and_spike, log_laplace],
)
def test_priors_at_work_check_nothing(prior: PriorLike) -> None:
    """Nor does anything that they are made of; and the object that was given is left as it was."""
    found = resolve_prior(prior)
    like, values = torch.zeros(()), {key: torch.ones(3, 1) for key in found.unknown}
    made = [found.distribution(EVEN, like, values)]
    if not found.build(EVEN).event_shape:
        made.append(found.value((3, 1), like, values))
    assert not [p for p in distributions_in(made) if p._validate_args]
    assert not isinstance(prior, dist.Normal) or prior._validate_args


def test_one_number_as_a_batch_stands_for_all_coordinates() -> None:
    p = resolve_prior(dist.Normal(torch.tensor([2.0]), 3.0)).distribution(SIZE)
    assert (p.batch_shape, p.event_shape) == ((), (SIZE,))
    assert p.mean.tolist() == [2.0] * SIZE


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (dist.Poisson(2.0), r"^prior Poisson is discrete; latents need a continuous prior, such as normal\.$"),
        (dist.VonMises(0.0, 1.0), r"^prior VonMises is not reparameterisable \(it has no rsample\), so its guide"),
        (dist.Normal(torch.zeros(3), 1.0), r"has batch shape \(3,\); need \(\) or \(5,\)\.$"),
        (dist.Normal(torch.zeros(2), 1.0), r"has batch shape \(2,\); need \(\) or \(5,\)\.$"),
        (lambda size: 1.5, r"^prior float gives float, not a Pyro distribution\.$"),
        (f"{__name__}:counted", rf"^prior {__name__}:counted is discrete"),
        (dist.LKJCholesky(3), "no posterior family fits|not reparameterisable|events of shape"),
    ],
)
def test_unusable_objects(prior: TorchDistribution, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_prior(prior).family(SIZE)


@pytest.mark.parametrize(
    ("prior", "kind"),
    [
        ("normal", dist.Normal),
        ("cauchy", dist.Normal),
        ("gamma", dist.LogNormal),
        ("half_normal", dist.LogNormal),
        ("uniform", dist.TransformedDistribution),
        ("pareto", dist.TransformedDistribution),
    ],
)
def test_families_by_support(prior: str, kind: type) -> None:
    q = resolve_prior(prior).family(SIZE)(torch.zeros(2, SIZE), torch.ones(2, SIZE))
    assert isinstance(q.base_dist, kind)
    assert isinstance(q.base_dist, dist.LogNormal) == (kind is dist.LogNormal)


@pytest.mark.parametrize(
    "prior", ["normal", "laplace(scale=0.7)", "gumbel", "log_normal(scale=2)", "hyperspherical_uniform"]
)
def test_analytic_kl_is_the_expected_log_ratio(prior: str) -> None:
    p = resolve_prior(prior).distribution(SIZE)
    family = resolve_prior(prior).family(SIZE)
    q = family(torch.randn(1, SIZE), torch.full((1, family.scale_size(SIZE)), 0.6).log())
    drawn = q.rsample((200_000,))
    ratio = q.log_prob(drawn) - p.log_prob(drawn)
    assert float(kl_divergence(q, p)) == pytest.approx(float(ratio.mean()), abs=5 * float(ratio.std()) / 200_000**0.5)


@pytest.mark.parametrize(
    "prior", ["normal", "gamma", "uniform(low=-3, high=1)", "pareto", "hyperspherical_uniform", "dirichlet"]
)
def test_posterior_moments(prior: str) -> None:
    family = resolve_prior(prior).family(SIZE)
    q = family(torch.randn(2, family.loc_size(SIZE)), torch.full((2, family.scale_size(SIZE)), 0.4).log())
    drawn = q.rsample((200_000,))
    mean, variance = drawn.mean(0), drawn.var(0)
    torch.testing.assert_close(posterior_mean(q), mean, atol=5 * float(variance.max() / 200_000) ** 0.5, rtol=0)
    torch.testing.assert_close(posterior_variance(q), variance, rtol=0.1, atol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("strength", [0.3, 4.0])
def test_n3(strength: float) -> None:
    """Density, moments and divergence against quadrature, and draws against the density's."""
    real, plane = N3(torch.tensor(strength)), ComplexN3(torch.full((2,), strength))
    x = torch.linspace(-12, 12, 4001)
    p = real.log_prob(x).exp()
    assert float(torch.trapezoid(p, x)) == pytest.approx(1, abs=1e-8)
    assert float(torch.trapezoid(p * x**2, x)) == pytest.approx(float(real.variance), rel=1e-6)
    grid = torch.stack(torch.meshgrid(x[::8], x[::8], indexing="ij"), -1)
    each = plane.log_prob(grid).exp()
    both = [torch.trapezoid(torch.trapezoid(f, x[::8]), x[::8]) for f in (each, each * grid[..., 0] ** 2)]
    assert float(both[0]) == pytest.approx(1, abs=1e-4)
    assert float(both[1]) == pytest.approx(float(plane.variance[0]), rel=1e-3)
    q = dist.Normal(torch.tensor([-0.7, 0.0, 2.0]), torch.tensor([0.4, 1.0, 0.1]))
    at = x.unsqueeze(-1)
    expected = torch.trapezoid(q.log_prob(at).exp() * (q.log_prob(at) - real.log_prob(at)), x, dim=0)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, real), expected, rtol=1e-5, atol=1e-6)
    for one, shape in ((real, ()), (plane, (2,))):
        drawn = one.rsample(torch.Size([40_000]))
        assert drawn.shape == (40_000, *shape)
        torch.testing.assert_close(drawn.mean(0), one.mean, atol=0.03 / strength ** (1 / 3), rtol=0)
        torch.testing.assert_close(drawn.var(0), one.variance, rtol=0.03, atol=0)
    learned = torch.tensor(strength, requires_grad=True)
    draw = N3(learned).rsample(torch.Size([100]))
    draw.abs().pow(3).mean().backward()  # |x|³ goes as 1/λ
    assert float(learned.grad) == pytest.approx(-float(draw.detach().abs().pow(3).mean()) / strength, rel=1e-6)
    with pytest.raises(InputError, match="give an even `dim`"):
        resolve_prior("complex_n3").distribution(3)


def test_the_sphere() -> None:
    uniform = HypersphericalUniform(4).expand(torch.Size([3]))
    assert uniform.sample((2,)).shape == (2, 3, 4)
    area = 2 * math.pi**2  # of the unit sphere in four dimensions
    assert float(HypersphericalUniform(4).log_prob(torch.ones(4) / 2)) == pytest.approx(-math.log(area))
    q = PowerSpherical(torch.eye(4)[0], torch.tensor(30.0)).expand(torch.Size([5]))
    assert q.rsample().shape == (5, 4)
    assert float(q.sample((1000,))[..., 0].mean()) > 0.8


def test_supports_with_bounds_per_coordinate() -> None:
    assert family_for(dist.Uniform(torch.zeros(3), torch.ones(3))).support.upper_bound == 1.0
    with pytest.raises(InputError, match="differs from coordinate to coordinate"):
        family_for(dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])))


def test_interval_family_covers_the_interval() -> None:
    q = Family(constraints.interval(2.0, 5.0))(torch.zeros(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(
        q.base_dist.transforms[0](torch.zeros(1)), biject_to(constraints.interval(2.0, 5.0))(torch.zeros(1))
    )


@pytest.mark.parametrize(
    ("prior", "shown"),
    [
        (
            "gamma",
            {"support": "positive", "posterior": "LogNormal", "of a coordinate": "mean 2, standard deviation 1.41"},
        ),
        ("cauchy(loc=3)", {"support": "real", "posterior": "Normal"}),
        ("pareto", {"support": "above 1", "posterior": "Normal, pushed onto it"}),
        (
            "normal(loc=learn_per_dim, scale=learn(0.3))",
            {
                "support": "real",
                "posterior": "Normal",
                "of a coordinate": "mean 0, standard deviation 0.3",
                "loc": "learned, from 0, one per dimension",
                "scale": "learned, from 0.3, one for all",
            },
        ),
        (
            "normal(scale=per_symbol(half_cauchy))",
            {
                "support": "real",
                "posterior": "Normal",
                "of a coordinate": "mean 0, standard deviation 1",
                "scale": "prior half_cauchy, one per symbol",
            },
        ),
        (
            my_prior_of_size,
            {"support": "real", "posterior": "Normal", "of a coordinate": "mean 0, standard deviation 1"},
        ),
    ],
)
def test_in_a_notebook(prior: PriorLike, shown: dict[str, str]) -> None:
    found = resolve_prior(prior)
    assert found._repr_html_() == as_html(f"Prior {found.text or 'a Python object'}", shown)


def test_repr() -> None:
    assert repr(resolve_prior("laplace(scale=0.5)")) == "Prior(laplace(scale=0.5))"
    assert repr(Prior(my_prior_of_size, None)) == "Prior(a Python object)"
