"""What training minimizes: how far a model's outputs are from those of its float teacher, and from labels.

B texts · D dimensions · C classes · R rows of logits.
"""

from torch import Tensor
from torch.nn import functional

_SIMILARITIES = 10.0  # of the similarities' loss beside the cosines': their differences are smaller


def embedding_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """1 − the mean cosine of each text's two embeddings, plus the mean square by which the similarities of all pairs of
    texts differ, times 10. The first says where texts lie, the second what users compare.
    """
    student_BD, teacher_BD = (functional.normalize(x.float(), dim=-1) for x in (student_BD, teacher_BD))
    cosine = (student_BD * teacher_BD).sum(-1).mean()
    moved_BB = student_BD @ student_BD.T - teacher_BD @ teacher_BD.T
    return 1 - cosine + _SIMILARITIES * moved_BB.square().mean()


def logit_loss(student_RC: Tensor, teacher_RC: Tensor) -> Tensor:
    """The mean KL divergence of the student's distribution from the teacher's; of a single logit, as of a reranker, the
    mean square of the difference."""
    student_RC, teacher_RC = student_RC.float(), teacher_RC.float()
    if student_RC.shape[-1] == 1:
        return functional.mse_loss(student_RC, teacher_RC)
    student, teacher = student_RC.log_softmax(-1), teacher_RC.log_softmax(-1)
    return functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def label_loss(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross entropy with labels, class numbers; or the mean square, where there is one logit."""
    if student_BC.shape[-1] == 1:
        return functional.mse_loss(student_BC.float()[:, 0], labels_B.float())
    return functional.cross_entropy(student_BC.float(), labels_B)


def pair_loss(student_PD: Tensor, partner_PD: Tensor, scores_P: Tensor) -> Tensor:
    """The mean square by which the cosines of pairs of embeddings differ from their scores, which go from 0 to 1."""
    cosine_P = functional.cosine_similarity(student_PD.float(), partner_PD.float(), dim=-1)
    return functional.mse_loss(cosine_P, scores_P.float())
