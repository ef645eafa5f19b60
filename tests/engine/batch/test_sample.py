"""What is trained, and what may see what."""

import pytest
import torch

from engine.batch.stream import Stream
from engine.model.forward import boson_forward, packed_hidden, packed_logits
from engine.model.weights import load_base
from engine.plan.plan import Pack, Sample
from tests.fixtures.steps import open_reader


@pytest.fixture(params=["eight codebooks", "four codebooks"])
def reader(request, model_folder, random_corpus, other_model_folder, other_random_corpus):
    if request.param == "eight codebooks":
        return open_reader(random_corpus.folder, model_folder), load_base(model_folder, torch.float32).eval()
    return open_reader(other_random_corpus.folder, other_model_folder), load_base(
        other_model_folder, torch.float32
    ).eval()


def one_sample(target=1, reference=0):
    return Pack((Sample(target=target, dialogue=-1, references=(reference,), num_tokens=0),))


def test_only_the_last_turn_is_trained_start_columns_and_both_stops(reader):
    reader, _ = reader
    batch = reader[one_sample()].batch
    tokens = reader.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    labelled = [number for number, label in enumerate(batch.label_ids[0].tolist()) if label != -100]
    assert [tokens[number] for number in labelled] == ["<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>"]
    assert labelled == [len(tokens) - 4, len(tokens) - 2, len(tokens) - 1]
    assert batch.label_ids[0][labelled].tolist() == batch.input_ids[0][labelled].tolist()

    reference_columns, end = int(batch.audio_out_ids_start[1]), batch.audio_out_ids.shape[1]
    target = reader.corpora.clip(1).codes.astype(int)
    num_codebooks, num_frames = target.shape
    assert end - reference_columns == num_frames + 2 + num_codebooks - 1
    assert (batch.label_audio_ids[:, :reference_columns] == -100).all(), "nothing in the reference is trained"
    for codebook in range(num_codebooks):
        labels = batch.label_audio_ids[codebook, reference_columns:]
        expected = [*target[codebook].tolist(), reader.config.audio_stream_eos_id]
        first = codebook + 1  # stream BOS, then one column of delay a codebook
        assert labels[first : first + num_frames + 1].tolist() == expected
        assert (labels != -100).sum() == num_frames + 1


def predictions(model, batch):
    if isinstance(batch, Stream):
        return packed_logits(model, packed_hidden(model, batch), batch)
    return boson_forward(model, batch)


def columns_of(batch):
    return batch.audio_columns if isinstance(batch, Stream) else batch.audio_out_ids


@pytest.mark.parametrize("forward", ["packed", "boson"])
def test_a_code_is_seen_only_by_later_predictions(forward, reader):
    reader, model = reader
    reader = open_reader(reader.corpora.folders[0], reader.model_folder, forward)
    batch = reader[one_sample()].batch
    start = reader.corpora.clip(0).codes.shape[1] + reader.config.audio_num_codebooks + 1
    num_codebooks, num_frames = reader.corpora.clip(1).codes.shape
    with torch.no_grad():
        before = predictions(model, batch)
        for codebook, frame in [(0, 0), (num_codebooks - 1, 0), (1, num_frames // 2), (0, num_frames - 1)]:
            changed = reader[one_sample()].batch
            column = start + frame + codebook + 1
            old = columns_of(changed)[codebook, column].item()
            assert old == reader.corpora.clip(1).codes[codebook, frame], "this is not the code that is meant"
            columns_of(changed)[codebook, column] = (old + 1) % reader.config.audio_codebook_size
            after = predictions(model, changed)
            # Row c of the labelled logits predicts column c + 1 of the target: codes (k', t') with t' + k' = c.
            difference = (after.audio_logits - before.audio_logits).abs().amax((1, 2))
            assert (difference[: frame + codebook + 1] == 0).all(), (codebook, frame)
            assert (difference[frame + codebook + 1 :] > 0).any(), (codebook, frame)
            assert torch.equal(after.text_logits[0], before.text_logits[0]), "the start is predicted from text alone"
            assert not torch.equal(after.text_logits[1], before.text_logits[1])


@pytest.mark.parametrize("forward", ["packed", "boson"])
def test_no_sample_of_a_pack_sees_another(forward, reader):
    reader, model = reader
    reader = open_reader(reader.corpora.folders[0], reader.model_folder, forward)

    def logits(*targets):
        pack = Pack(tuple(Sample(target=row, dialogue=-1, references=(row - 1,), num_tokens=0) for row in targets))
        with torch.no_grad():
            return predictions(model, reader[pack].batch)

    first, second = logits(1, 3), logits(1, 5)
    num_columns = reader.corpora.clip(1).codes.shape[1] + reader.config.audio_num_codebooks
    # Another length changes the shape of the matmuls, and so their last digits.
    torch.testing.assert_close(first.text_logits[:3], second.text_logits[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        first.audio_logits[:num_columns], second.audio_logits[:num_columns], rtol=1e-5, atol=1e-6
    )
    assert (first.text_logits[3:] - second.text_logits[3:]).abs().max() > 1e-2
