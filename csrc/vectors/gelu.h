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

// Fewer terms where the result will be bf16 or 8-bit codes: the error is below 2^-11 of results above 0.001, below 7e-5
// elsewhere. 2^P splits into an exponent, the floor of P, and a polynomial on [0, 1].
static constexpr float kGeluBf16End = 5.5f;
static constexpr float kGeluBf16Tail[5] = {-1.0005459785461426f, -1.1434993743896484f, -0.47649040818214417f,
                                           -0.03879614546895027f, 0.0028867328073829412f};
static constexpr float kExp2Bf16[4] = {0.9999253153800964f, 0.695833146572113f, 0.2260674238204956f,
                                       0.07802470028400421f};
