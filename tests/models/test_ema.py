"""The moving average of a student, against the released one."""

import pytest
import torch
from support import paths, vectors
from torch import nn

from noisyml.checks import ArgumentError
from noisyml.models.ema import EMATeacher, ema_decay

GOLDEN = paths.GOLDEN / "otter"


class Vector(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.x = nn.Parameter(value.clone())


def test_averages_equal_the_released_ones():
    case = vectors.tensors(GOLDEN, "ema")
    for decay in (0.999, 0.3):
        at = {name: case[f"decay{decay}__{name}"] for name in ("params", "shadow", "copied")}
        student = nn.ModuleDict({"one": Vector(at["shadow"][0])})
        teacher = EMATeacher(student, decay)
        for step, params in enumerate(at["params"]):
            student["one"].x.data = params.clone()
            teacher.update_parameters(student)
            vectors.close(teacher.module["one"].x, at["shadow"][step + 1])
            vectors.close(teacher.module["one"].x, at["copied"][step])
        assert int(teacher.n_averaged) == 12
        before = case[f"decay{decay}__const_before"]
        student["one"].x.data = before.clone()
        constant = EMATeacher(student, decay, warmup=False)
        student["one"].x.data = before + 1
        constant.update_parameters(student)
        vectors.close(constant.module["one"].x, case[f"decay{decay}__const_after"])
    decays = ema_decay(case["n_updates"], float(case["nominal_decay"]))
    vectors.close(decays, case["effective_decay"])


@pytest.mark.parametrize("buffers", ["own", "copied", "averaged"])
def test_buffers_are_its_own_or_follow_the_student(buffers):
    student = nn.ModuleDict({"norm": nn.BatchNorm1d(2)})
    teacher = EMATeacher(student, buffers=buffers)
    student["norm"].running_mean.fill_(11.0)
    teacher.update_parameters(student)
    expected = {"own": 0.0, "copied": 11.0, "averaged": 9.0}[buffers]
    torch.testing.assert_close(teacher.module["norm"].running_mean, torch.full((2,), expected))


def test_modes_gradients_and_settings():
    student = nn.ModuleDict({"norm": nn.BatchNorm1d(2)})
    assert EMATeacher(student).train().module["norm"].training
    still = EMATeacher(student, mode="eval").train()
    assert not still.module["norm"].training
    assert not any(p.requires_grad for p in still.parameters())
    assert all(p.requires_grad for p in student.parameters())
    again = EMATeacher(student)
    still.update_parameters(student)
    again.load_state_dict(still.state_dict())
    assert int(again.n_averaged) == 1
    with pytest.raises(ArgumentError, match=r"decay=1\.0 must be"):
        EMATeacher(student, 1.0)


def test_frozen_parameters_are_left_alone_only_while_they_are_the_students():
    student = nn.ModuleDict({"fixed": Vector(torch.randn(5)), "free": Vector(torch.randn(5))})
    student["fixed"].requires_grad_(False)
    teacher = EMATeacher(student, decay=0.5, warmup=False)
    version = teacher.module["fixed"].x._version
    for _ in range(3):
        student["free"].x.data += 1
        teacher.update_parameters(student)
    assert teacher.module["fixed"].x._version == version
    assert torch.equal(teacher.module["fixed"].x, student["fixed"].x)
    torch.testing.assert_close(
        student["free"].x - teacher.module["free"].x, torch.full((5,), 0.875)
    )

    # Other weights from a checkpoint are followed, and so is what trains from now on.
    state = teacher.state_dict()
    state["module.fixed.x"] = student["fixed"].x + 8
    teacher.load_state_dict(state)
    teacher.update_parameters(student)
    torch.testing.assert_close(
        teacher.module["fixed"].x - student["fixed"].x, torch.full((5,), 4.0)
    )
    again = EMATeacher(student, decay=0.5, warmup=False)
    again.update_parameters(student)
    student["fixed"].requires_grad_(True)
    student["fixed"].x.data += 1
    again.update_parameters(student)
    torch.testing.assert_close(student["fixed"].x - again.module["fixed"].x, torch.full((5,), 0.5))
