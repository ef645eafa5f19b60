"""Reference consistency: speech that a sample generates should stay nearer to its own reference than to others'.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) over voices: final hidden states summed over the
audio columns of a sample's target and of its references, compared by cosine. Negatives are the references of other
speakers in the same pack; other samples of the same speaker are none.
"""

import torch
import torch.nn.functional as F


def consistency_sum(
    states: torch.Tensor, voice: torch.Tensor, speakers: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Sum [] over the pack's contrasted samples of -log softmax of the target's likeness to its own reference.

    states: [A, hidden] of the audio columns; voice: [A], 2n for the references of sample n and 2n + 1 for its target;
    speakers: [S]. Contrasted is a sample with a reference where another speaker of the pack has one
    (engine.plan.plan.Pack.num_contrasted counts them); where none is, 0 with a gradient of 0.
    """
    voices = torch.arange(2 * len(speakers), device=voice.device)
    members = voice == voices.unsqueeze(1)  # [2S, A]
    # A product with zeros and ones sums the columns of each voice in a fixed order, which index_add would not on
    # CUDA. The length does not matter to a cosine.
    pooled = F.normalize((members.to(states.dtype) @ states).float(), dim=1)
    references, targets = pooled[0::2], pooled[1::2]
    has_reference = members[0::2].any(1)
    is_other = (speakers.unsqueeze(1) != speakers) & has_reference
    likeness = targets @ references.T / temperature  # [S, S]
    own = likeness.diagonal()
    compared = is_other | torch.eye(len(speakers), dtype=torch.bool, device=voice.device)
    losses = likeness.masked_fill(~compared, float("-inf")).logsumexp(1) - own
    return torch.where(has_reference & is_other.any(1), losses, 0.0).sum()
