"""Reference consistency: a loss that keeps a target's voice nearer to its own reference than to other speakers'.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) on voices. A voice is the sum of the final hidden
states over audio columns: those of a sample's target, or those of its references. Voices are compared by cosine. The
negatives of a target are the references of other speakers in the same pack, never those of its own speaker.
"""

import torch
import torch.nn.functional as F


def consistency_sum(
    states: torch.Tensor, voice: torch.Tensor, speakers: torch.Tensor, temperature: float
) -> torch.Tensor:
    """[] InfoNCE loss in nats, summed over the samples that are contrasted; 0 with a gradient of 0 if none is.

    states: [A, hidden] of the audio columns; voice: [A], 2n for the references of sample n and 2n + 1 for its target;
    speakers: [S]. A sample is contrasted if it has a reference and another speaker of the pack has one too
    (engine.plan.plan.Pack.num_contrasted counts these samples).
    """
    voices = torch.arange(2 * len(speakers), device=voice.device)
    members = voice == voices.unsqueeze(1)  # [2S, A]
    # A matrix product with zeros and ones sums the columns of each voice in a fixed order; on CUDA index_add does
    # not. A sum serves as well as a mean: cosine ignores length.
    pooled = F.normalize((members.to(states.dtype) @ states).float(), dim=1)
    references, targets = pooled[0::2], pooled[1::2]
    has_reference = members[0::2].any(1)
    is_other = (speakers.unsqueeze(1) != speakers) & has_reference
    similarity = targets @ references.T / temperature  # [S, S]
    compared = is_other | torch.eye(len(speakers), dtype=torch.bool, device=voice.device)
    losses = similarity.masked_fill(~compared, float("-inf")).logsumexp(1) - similarity.diagonal()
    return torch.where(has_reference & is_other.any(1), losses, 0.0).sum()
