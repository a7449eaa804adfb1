"""Slow reference twins of train.py's optimizers: one matrix, one trace, one number at a time.

Written from the papers and the laws in docs/optimizers, sharing no code with train.py. A twin holds float64 copies of
the parameters; `step(grads, loss)` moves them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# https://arxiv.org/abs/2505.16932, appendix; five steps, safety factor 1.01 worked in.
QUINTICS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar(g: Tensor, steps: int = 5) -> Tensor:
    """On singular values: the odd polynomials applied to each of them."""
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / (g.norm() * 1.02 + 1e-6)
    for step in range(steps):
        a, b, c = QUINTICS[min(step, 4)]
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


class MuonTwin:
    """One matrix at a time. settings: lr, momentum, weight_decay, and the fields of a policy that are not default."""

    def __init__(self, params: Sequence[Tensor], **settings: Any) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.s = {"nesterov": True, "placement": "before", "orthogonalisation": "polar_express", "ns_steps": 5}
        self.s |= {"orthogonal_mix": 1.0, "beta2": 0.95, "trust": "none", "trust_low": 0.1, "trust_high": 10.0}
        self.s |= {"trust_mix": 1.0, "update_multiplier": 1.0, "clip": "none", "clip_threshold": 1.0}
        self.s |= {"decay": "cautious", "sharpness": 1.0, "ema_beta": 0.9, "control": {}, "normalisers": {}} | settings
        self.fixed, self.limits = self.s, dict.fromkeys(range(len(self.params)), self.s["clip_threshold"])
        self.past: list[dict[str, Any]] = [{"means": {}, "seen": {}} for _ in self.params]
        self.momentum = [torch.zeros_like(p) for p in self.params]
        self.second: list[Any] = [None] * len(self.params)

    def carry(self, i: int, g: Tensor) -> Tensor:
        mu = self.s["momentum"]
        self.momentum[i] = mu * self.momentum[i] + (1 - mu) * g
        return (1 - mu) * g + mu * self.momentum[i] if self.s["nesterov"] else self.momentum[i]

    def direct(self, g: Tensor) -> Tensor:
        if self.s["orthogonalisation"] == "none":
            return g / g.norm() * math.sqrt(min(g.shape))
        made, mix = polar(g, self.s["ns_steps"]), self.s["orthogonal_mix"]
        return mix * made + (1 - mix) * g * (made.norm() / g.norm())

    def level(self, i: int, u: Tensor) -> Tensor:
        """NorMuon: rows, or columns where the matrix is wide."""
        m, n = u.shape
        lines = [u[r] for r in range(m)] if m >= n else [u[:, c] for c in range(n)]
        self.second[i] = self.second[i] or [0.0] * len(lines)
        for k, line in enumerate(lines):
            mean = sum(x.item() ** 2 for x in line) / len(line)
            self.second[i][k] = self.s["beta2"] * self.second[i][k] + (1 - self.s["beta2"]) * mean
        scaled = [line / math.sqrt(max(v, 1e-10)) for line, v in zip(lines, self.second[i], strict=True)]
        out = torch.stack(scaled, 0 if m >= n else 1)
        return out * (u.norm() / out.norm())

    def sense(self, i: int, g: Tensor, loss: float) -> dict[str, float]:
        """Running means, plain ones at first; what is not known yet, or infinite, is left out."""
        past, found = self.past[i], {"loss_ema": loss, "grad_norm_ema": g.norm().item()}
        if "loss" in past:
            found["loss_improvement_ema"] = past["loss"] - loss
            found["grad_alignment_ema"] = ((g * past["g"]).sum() / (g.norm() * past["g"].norm())).item()
            found["update_ratio_ema"] = past["ratio"]
        for name, value in found.items():
            if math.isfinite(value):
                seen = past["seen"][name] = past["seen"].get(name, 0) + 1
                rate, mean = max(1 - self.s["ema_beta"], 1 / seen), past["means"].get(name, 0.0)
                past["means"][name] = mean + rate * (value - mean)
        past |= {"loss": loss, "g": g}
        return {"step_fraction": 0.0, **past["means"]}

    def actuate(self, sensors: dict[str, float]) -> dict[str, float]:
        found = {}
        for name, law in self.fixed["control"].items():
            drive = law.get("bias", 0.0)
            for sensor, value in sensors.items():
                drive += law.get(sensor, 0.0) * value / self.fixed["normalisers"].get(sensor, 1.0)
            low, high = law["poles"]
            found[name] = low + (high - low) / (1 + math.exp(-self.fixed["sharpness"] * drive))
        return found

    def update(self, i: int, g: Tensor, loss: float) -> Tensor:
        s = self.s = self.fixed | self.actuate(self.sense(i, g, loss))
        self.limits[i] = s["clip_threshold"]
        u = self.carry(i, g) if s["placement"] == "before" else g
        u = self.direct(u)
        u = self.carry(i, u) if s["placement"] == "after" else u
        u = self.level(i, u) if s["beta2"] is not None else u
        if s["trust"] == "layerwise":
            w, d = self.params[i].norm().item(), u.norm().item()
            ratio = min(max(w / d, s["trust_low"]), s["trust_high"]) if w > 0 and d > 0 else 1.0
            u = u * (1 + s["trust_mix"] * (ratio - 1))
        u = u * s["update_multiplier"]
        if s["clip"] == "update_rms":
            rms = u.square().mean().sqrt().item() * math.sqrt(max(u.shape))
            u = u * min(1.0, s["clip_threshold"] / rms)
        return u

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        updates = {i: self.update(i, g.double(), loss) for i, g in enumerate(grads) if g is not None}
        if self.s["clip"] == "global_norm":
            squares = sum((u * u).sum().item() for u in updates.values())
            size = math.sqrt(squares / sum(min(u.shape) for u in updates.values()))
            updates = {i: u * min(1.0, self.limits[i] / size) for i, u in updates.items()}
        for i, u in updates.items():
            w, rate = self.params[i], self.s["weight_decay"]
            for r in range(w.size(0)):
                for c in range(w.size(1)):
                    pulls = {"none": False, "decoupled": True, "cautious": (u[r, c] * w[r, c]).item() > 0}
                    u[r, c] += rate * w[r, c] if pulls[self.s["decay"]] else 0.0
            step = self.s["lr"] * math.sqrt(max(1.0, w.size(0) / w.size(1))) * u
            self.past[i]["ratio"] = (step.norm() / w.norm()).item()
            self.params[i] = w - step


class AdamTwin:
    """https://arxiv.org/abs/1412.6980 with decoupled decay. sparse: rows whose gradient is zero stand still."""

    def __init__(
        self, params: Sequence[Tensor], lr: float, betas: tuple[float, float], eps: float, **rest: Any
    ) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.betas, self.eps = lr, betas, eps
        self.decay, self.sparse = rest.get("weight_decay", 0.0), rest.get("sparse", False)
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))
        self.t = [0] * len(self.params)

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            g = g.to_dense().double()
            rows = [r for r in range(len(g)) if not self.sparse or bool(g[r].any())]
            for r in rows:
                self.params[i][r] *= 1 - self.lr * self.decay
                self.m[i][r] = self.betas[0] * self.m[i][r] + (1 - self.betas[0]) * g[r]
                self.v[i][r] = self.betas[1] * self.v[i][r] + (1 - self.betas[1]) * g[r] ** 2
                top = self.m[i][r] / (1 - self.betas[0] ** self.t[i])
                bottom = (self.v[i][r] / (1 - self.betas[1] ** self.t[i])).sqrt()
                if self.sparse:  # torch's form: eps beside the uncorrected root
                    bottom = bottom + self.eps / math.sqrt(1 - self.betas[1] ** self.t[i])
                else:
                    bottom = bottom + self.eps
                self.params[i][r] -= self.lr * top / bottom


class SGDTwin:
    def __init__(self, params: Sequence[Tensor], lr: float, momentum: float = 0.0) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.momentum = lr, momentum
        self.buffers: list[Any] = [None] * len(self.params)

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        for i, g in enumerate(grads):
            if g is not None:
                g, old = g.double(), self.buffers[i]
                self.buffers[i] = g if old is None else self.momentum * old + g
                self.params[i] = self.params[i] - self.lr * self.buffers[i]


class AdaGradTwin:
    def __init__(self, params: Sequence[Tensor], lr: float) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.sums = lr, [torch.zeros_like(p) for p in self.params]

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        for i, g in enumerate(grads):
            if g is not None:
                self.sums[i] = self.sums[i] + g.double() ** 2
                self.params[i] = self.params[i] - self.lr * g.double() / (self.sums[i].sqrt() + 1e-10)


class LiteralTwin:
    """Another twin whose lr follows the literal rule: up by 1.02 after a lower loss, down to 0.8 of it otherwise."""

    def __init__(self, base: Any, bounds: tuple[float, float] = (1e-6, 5e-2)) -> None:
        self.base, self.bounds, self.last = base, bounds, math.nan

    @property
    def params(self) -> list[Tensor]:
        return self.base.params

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        self.base.step(grads, loss)
        if not math.isnan(self.last):
            factor = 1.02 if loss < self.last else 0.8
            self.base.lr = min(max(self.base.lr * factor, self.bounds[0]), self.bounds[1])
        self.last = loss


class ControlTwin:
    """Adaptive control over the list of a window's losses: lr, momentum and sigma by the rules trend and blend."""

    def __init__(self, lr: float, momentum: float, sigma: float, rule: str, window: int, kappa: float = 3.0) -> None:
        self.lr, self.momentum, self.sigma, self.rule = lr, momentum, sigma, rule
        self.window, self.kappa = window, kappa
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.reward = self.told = self.mean = self.variance = self.usual = math.nan
        self.gained = self.lost = False
        self.behind = self.held = self.count = 0

    def step(self, loss: float, norm: float, reward: float | None = None) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.told = self.told if reward is None else reward
        if len(self.losses) == self.window:
            self.decide()
            self.losses, self.norms, self.told = [], [], math.nan

    def decide(self) -> None:
        self.count += 1
        held, self.held = self.held, max(0, self.held - 1)
        if not all(math.isfinite(loss) for loss in self.losses):
            self.lr = max(0.8 * self.lr, 1e-6)
            self.sigma, self.held, self.behind = self.sigma / 2, 4, 0
            return
        mean, norm, usual = statistics.fmean(self.losses), statistics.fmean(self.norms), self.usual
        variance = statistics.variance(self.losses) / mean**2
        self.usual = norm if math.isnan(usual) else 0.9 * usual + 0.1 * norm
        last, was, self.mean, self.variance = self.mean, self.variance, mean, variance
        gain = self.told - self.reward
        self.reward = self.reward if math.isnan(self.told) else self.told
        if math.isnan(last):
            return
        won, band = (last - mean) / abs(mean), self.kappa * math.sqrt(variance / self.window)
        self.behind = self.behind + 1 if won < -band else 0
        loud = variance > 4 * was
        if (won < -band and self.lost) or loud:
            self.momentum = 1 - (1 - self.momentum) / 0.95
        elif gain > 0 or (won > band and self.gained):
            self.momentum = 1 - (1 - self.momentum) * 0.95
        self.gained, self.lost = won > 0, won < 0
        if won < -band or loud:
            self.sigma /= 2
        elif won <= band:
            self.sigma *= 1.1
        self.sigma, self.momentum = min(self.sigma, 1e-2), max(self.momentum, 0.0)
        if not held:
            self.move(won > band, math.log(1 - 0.2 / (1 + 10 * variance)), was, loud, norm > 2 * usual)

    def move(self, better: bool, drop: float, was: float, loud: bool, steep: bool) -> None:
        falls = self.behind >= 2
        change = drop if falls else math.log(1.02) if better else 0.0
        if self.rule == "blend":
            w = was / (was + self.variance)
            cycle = math.log(1.02) * math.cos(2 * math.pi * self.count / 40)
            change = max(drop, w * (change + cycle) + (1 - w) * (drop * loud + drop * steep))
        self.lr = min(max(self.lr * math.exp(change), 1e-6), 5e-2)
        if falls:
            self.held, self.behind = 4, 0


class ResonanceTwin:
    """ARS's law over Python lists."""

    def __init__(self, alpha: float = 1.0, phi_min: float = 0.3, psi_min: float = 0.1, **rest: Any) -> None:
        self.alpha, self.phi_min, self.psi_min = alpha, phi_min, psi_min
        self.threshold, self.history = rest.get("rho_threshold", 0.75), rest.get("history", 10)
        self.window, self.scaled = rest.get("window", 50), rest.get("scaled", False)
        self.losses: list[float] = []
        self.surprises: list[float] = []

    def rho(self) -> float:
        s = self.surprises[-self.window :]
        mean = sum(s) / len(s) if s else 0.0
        power = sum((x - mean) ** 2 for x in s)
        if len(s) < self.window or power == 0 or power < 1e-8 * (sum(x * x for x in s) if self.scaled else 1.0):
            return 0.0
        return sum((s[k] - mean) * (s[k + 1] - mean) for k in range(len(s) - 1)) / power

    def step(self, loss: float) -> tuple[float, float, float, float]:
        """Surprise (as the gate sees it), rho, psi, phi."""
        surprise, finite, before = 0.0, math.isfinite(loss), self.surprises[-self.window :]
        if finite and len(self.losses) >= 2:
            recent = self.losses[-self.history :]
            surprise = abs(loss - sum(recent) / len(recent))
            surprise = 0.0 if self.scaled and surprise <= 1e-6 * abs(loss) else surprise
        if finite:
            self.losses.append(loss)
            self.surprises.append(surprise)
        rho = self.rho()
        psi = max(self.psi_min, 1 - abs(rho)) if abs(rho) > self.threshold else 1.0
        if self.scaled:
            size = math.sqrt(sum(x * x for x in before) / len(before)) if before else 0.0
            surprise = surprise / size if size > 0 else float(surprise > 0)
        return surprise, rho, psi, max(self.phi_min, 1 - math.tanh(self.alpha * surprise / psi))


class ARSTwin:
    """A base twin behind ARS. Noise comes from torch's generator, in the order of the parameters."""

    def __init__(self, base: Any, jitter_scale: float = 0.005, on: str = "gradient", **law: Any) -> None:
        self.base, self.jitter_scale, self.on = base, jitter_scale, on
        self.relative, self.law = law.pop("relative_jitter", False), ResonanceTwin(**law)

    @property
    def params(self) -> list[Tensor]:
        return self.base.params

    def step(self, grads: Sequence[Tensor | None], loss: float) -> None:
        _, _, psi, phi = self.law.step(loss)
        shaped: list[Tensor | None] = []
        for g in grads:
            if g is not None and psi < 0.5 and self.jitter_scale:
                size = math.sqrt(sum(x.item() ** 2 for x in g.flatten()) / g.numel()) if self.relative else 1.0
                g = g + self.jitter_scale * size * torch.randn_like(g)
            shaped.append(g if g is None or self.on == "update" else g * phi)
        before = [p.clone() for p in self.base.params]
        self.base.step(shaped, loss)
        if self.on == "update":
            self.base.params = [old + phi * (p - old) for old, p in zip(before, self.base.params, strict=True)]


class ARTTwin:
    """Fuzzy ART, one input, one trace and one coordinate at a time, over lists."""

    def __init__(self, max_traces: int, vigilance: float, eta: float, alpha: float, coding: str, **rest: Any) -> None:
        self.max, self.vigilance, self.eta, self.alpha, self.coding = max_traces, vigilance, eta, alpha, coding
        self.creations, self.recycle = rest.get("creations", 1), rest.get("recycle", False)
        self.traces: list[list[float]] = []
        self.uses: list[float] = []

    def code(self, x: Tensor) -> list[float]:
        raw = [v.item() for v in x.double()]
        if self.coding == "raw":
            return raw
        a = [1 / (1 + math.exp(-v)) for v in raw]
        return a + [1 - v for v in a]

    def match(self, i: list[float], w: list[float]) -> tuple[float, float]:
        """Choice and match."""
        if self.coding == "raw":
            dot = sum(a * b for a, b in zip(i, w, strict=True))
            size = math.sqrt(sum(a * a for a in i)) * math.sqrt(sum(b * b for b in w))
            return dot / size, dot / size
        both = sum(min(a, b) for a, b in zip(i, w, strict=True))
        return both / (self.alpha + sum(w)), both / sum(i)

    def winner(self, i: list[float]) -> int | None:
        fits = [(self.match(i, w)[0], -j) for j, w in enumerate(self.traces) if self.match(i, w)[1] >= self.vigilance]
        return -max(fits)[1] if fits else None

    def learn(self, x: Tensor) -> None:
        coded = [self.code(row) for row in x]
        won = [self.winner(i) for i in coded]
        for j in range(len(self.traces)):
            mine = [i for i, w in zip(coded, won, strict=True) if w == j]
            if mine:
                for d, w in enumerate(self.traces[j]):
                    mean = sum(min(i[d], w) for i in mine) / len(mine)
                    self.traces[j][d] = w + self.eta * (mean - w)
                self.uses[j] += len(mine)
        places = sorted(range(self.max), key=lambda j: self.uses[j] if j < len(self.uses) else 0.0)  # least used first
        for i, j in zip(
            [i for i, w in zip(coded, won, strict=True) if w is None][: self.creations], places, strict=False
        ):
            if j >= len(self.traces):
                self.traces.append(list(i))
                self.uses.append(1.0)
            elif self.recycle:
                self.traces[j], self.uses[j] = list(i), self.uses[j] + 1  # not the next to go

    def loss(self, x: Tensor) -> float:
        """Mean over the inputs that resonate of the mean square to their trace, or box."""
        found = []
        for row in x:
            i = self.code(row)
            j = self.winner(i)
            if j is None:
                continue
            w, d = self.traces[j], len(row)
            if self.coding == "raw":
                found.append(sum((a - b) ** 2 for a, b in zip(i, w, strict=True)) / d)
            else:
                low, high = w[:d], [1 - v for v in w[d:]]
                out = [max(lo - a, 0.0) + max(a - hi, 0.0) for a, lo, hi in zip(i[:d], low, high, strict=True)]
                found.append(sum(o * o for o in out) / d)
        return sum(found) / len(found) if found else 0.0
