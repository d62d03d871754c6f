"""The loss that uses its logits up, beside torch's and transformers': the same bits, less memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from cutlayer.model import loss
from cutlayer.model.loss import MASKED, Learned, replica_losses, token_loss

BATCH, TOKENS = 3, 7


def random_case(vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    logits_BTV = (4 * torch.randn(BATCH, TOKENS, vocabulary, generator=generator)).to(dtype)
    labels_BT = torch.randint(vocabulary, (BATCH, TOKENS), generator=generator)
    labels_BT[:, :2] = MASKED
    labels_BT[-1, 4:] = MASKED
    return logits_BTV, labels_BT


def loss_and_gradient(function: object, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """By way of a linear map, as in a model: logits themselves are not leaves."""
    leaf = logits_BTV.clone().requires_grad_()
    value = function(leaf * 1, labels_BT)  # type: ignore[operator]
    (3 * value).backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [2, 17, 64, 1003])
@pytest.mark.parametrize("piece", [1, 200, 2**20])
def test_it_is_transformers_loss_bit_for_bit(
    vocabulary: int, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "PIECE", piece)
    logits_BTV, labels_BT = random_case(vocabulary, dtype)
    expected = loss_and_gradient(
        lambda logits, labels: ForCausalLMLoss(logits, labels, vocab_size=vocabulary), logits_BTV, labels_BT
    )
    got = loss_and_gradient(token_loss, logits_BTV, labels_BT)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert got[1].dtype is dtype


def test_labels_are_not_written_to() -> None:
    logits_BTV, labels_BT = random_case(17, torch.float32)
    before = labels_BT.clone()
    loss_and_gradient(token_loss, logits_BTV, labels_BT)
    assert torch.equal(labels_BT, before)


def test_one_tensor_of_that_size_is_alive() -> None:
    """Logits, log-softmax and gradient are one piece of memory after the other."""
    logits_BTV, labels_BT = random_case(1003, torch.float32)
    logits_BTV.requires_grad_()
    inside = logits_BTV * 1
    seen: list[int] = []
    inside.register_hook(lambda gradient: seen.append(gradient.untyped_storage().data_ptr()))
    token_loss(inside, labels_BT).backward()
    assert seen == [inside.untyped_storage().data_ptr()]


def test_nothing_that_counts_is_not_a_number() -> None:
    """As in torch: the server then reports that training diverged."""
    logits_BTV, labels_BT = random_case(17, torch.float32)
    assert torch.isnan(token_loss(logits_BTV, torch.full_like(labels_BT, MASKED)))


def test_every_replica_is_averaged_over_its_own_tokens() -> None:
    """Bit for bit the loss of each alone, and not a third of all of them together."""
    cases = [random_case(vocabulary, torch.float32)[0][..., :20] for vocabulary in (20, 21, 22)]
    labels_BT = random_case(20, torch.float32)[1]
    learned = Learned.of(labels_BT)
    picked = [logits_BTV.flatten(0, 1)[learned.positions_N] for logits_BTV in cases]
    alone = [learned.loss(rows_NV.clone()[None]) for rows_NV in picked]
    together = learned.repeated(3, labels_BT.numel())
    rows = torch.cat(cases).flatten(0, 1)[together.positions_N]
    assert torch.equal(rows, torch.cat(picked))
    assert torch.equal(replica_losses(rows[None], learned, 3), torch.stack(alone))
    assert torch.allclose(torch.stack(alone), torch.stack([token_loss(one.clone(), labels_BT) for one in cases]))


def test_only_learned_positions_reach_the_head() -> None:
    """The head's own forward, on those rows alone; their gradients are those of all rows, the others' are zero."""
    torch.manual_seed(0)
    head, h_BTD, labels_BT = (
        nn.Linear(8, 17, bias=False),
        torch.randn(BATCH, TOKENS, 8),
        random_case(17, torch.float32)[1],
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model, learned, gradients, losses = Model(), Learned.of(labels_BT), [], []
    for few in (True, False):
        leaf_BTD = h_BTD.clone().requires_grad_()
        with learned.alone(model) if few else nullcontext():
            logits = head(leaf_BTD)
        assert logits.shape == ((1, len(learned.positions_N), 17) if few else (BATCH, TOKENS, 17))
        loss = learned.loss(logits) if few else token_loss(logits, labels_BT)
        loss.backward()
        losses.append(loss)
        gradients.append(leaf_BTD.grad)
    assert torch.allclose(losses[0], losses[1])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)
    other = torch.ones(BATCH * TOKENS, dtype=torch.bool)
    other[learned.positions_N] = False
    assert 0 < int(other.sum()) < BATCH * TOKENS
    assert not gradients[0].flatten(0, 1)[other].any()
    assert head(h_BTD).shape == (BATCH, TOKENS, 17), "and afterwards all do"


def test_every_replica_of_a_classifier_has_its_mean() -> None:
    logits_BC = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 3, 1])
    alone = [torch.nn.functional.cross_entropy(part, labels_B) for part in logits_BC.split(3)]
    assert torch.equal(replica_losses(logits_BC, labels_B, 2), torch.stack(alone))
