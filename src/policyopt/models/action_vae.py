"""A conditional variational autoencoder of actions: which actions a data set shows in a state (arXiv 1812.02900)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policyopt.models.soft_actor import multilayer_perceptron
from policyopt.types import Part

LOG_DEVIATION = (-4.0, 15.0)
PRIOR = 0.5  # latents drawn without an action are clipped to ±PRIOR


def latent_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Half the mean over rows and latents of mean² + deviation² − 1 − log deviation²: KL to N(0, I) per latent."""
    return 0.5 * (mean.square() + deviation.square() - 1.0 - 2.0 * deviation.log()).mean()


class ActionVAE(nn.Module):
    """Observation [N, S] and action [N, A] → latent of ``latent`` numbers → action [N, A] in the box [−1, 1]^A."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latent, [N, latent] each."""
        mean, log_deviation = self.encoder(torch.cat((observation, action), -1)).chunk(2, -1)
        return mean, log_deviation.clamp(*LOG_DEVIATION).exp()

    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        action: Tensor = self.decoder(torch.cat((observation, latent), -1))
        return action.tanh()

    def reconstruct(self, observation: Tensor, action: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The action [N, A] from a sampled latent, and the latent's mean and deviation."""
        mean, deviation = self.encode(observation, action)
        latent = mean + deviation * torch.randn(mean.shape, generator=rng)
        return self.decode(observation, latent), mean, deviation

    def sample(self, observation: Tensor, rng: torch.Generator) -> Tensor:
        """An action [N, A] from the prior, its latent clipped."""
        latent = torch.randn(len(observation), self.latent, generator=rng).clamp(-PRIOR, PRIOR)
        return self.decode(observation, latent)


@dataclass(frozen=True, kw_only=True)
class ActionAutoencoder(Part):
    """Builds one; the latent has twice as many numbers as an action. Raises ValueError for sizes that aren't positive."""

    width: int = 750
    layers: int = 2

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"an autoencoder needs positive sizes, got {self.width=}, {self.layers=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> ActionVAE:
        hidden, latent = (self.width,) * self.layers, 2 * action_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = multilayer_perceptron((observation_size + action_size, *hidden, 2 * latent), nn.ReLU, False)
            decoder = multilayer_perceptron((observation_size + latent, *hidden, action_size), nn.ReLU, False)
        return ActionVAE(encoder, decoder, latent)
