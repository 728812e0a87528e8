// GELU(x) = x * Phi(x) = max(x, 0) - a * Q(a), a = |x|, Q = 1 - Phi the Gaussian tail. log2 Q is smooth, so Q = 2^P(a)
// with a polynomial P on [0, kGeluEnd]; 2^P splits into an exponent and a polynomial on [-1/2, 1/2]. No cancellation:
// the absolute error stays below 3e-7 everywhere, a quarter of what 0.5 * x * (1 + erf(x / sqrt 2)) has in f32.
// Weighted minimax fits (Lawson's iteration); lowest power first.
#pragma once

static constexpr float kGeluEnd = 7.0f;
static constexpr float kGeluTail[9] = {-0.999998152256012f,     -1.1511338949203491f,    -0.459063857793808f,
                                       -0.05283050611615181f,   0.007472931407392025f,   -0.00041741758468560874f,
                                       -7.891355198808014e-05f, 1.8090640878654085e-05f, -1.1356544291629689e-06f};
static constexpr float kExp2[6] = {1.0000001192092896f,  0.6931469440460205f,   0.24022120237350464f,
                                   0.05550713464617729f, 0.009675547480583191f, 0.0013276472454890609f};
