// The variants of an operator, and the choice among them. An operator has one table, in its dispatch.cpp.
#pragma once
#include <span>

#include "cpu.h"

// kernel: what the operator's contract says a variant is, a function most often.
template <class Kernel>
struct Variant {
    const char* name;
    Isa isa;  // that it belongs to, and needs
    Kernel kernel;
    bool (*feature)() = nullptr;  // that it needs beside
    bool (*faster)() = nullptr;   // where this is false, variants below it are better
};

// Best first.
template <class Kernel>
using Variants = std::span<const Variant<Kernel>>;

template <class Kernel>
bool runs(const Variant<Kernel>& variant) {
    return isa_supported(variant.isa) && (!variant.feature || variant.feature());
}

// The variant that this processor runs fastest without going beyond `isa`; null if the operator has none.
template <class Kernel>
const Variant<Kernel>* best_variant(Variants<Kernel> variants, Isa isa) {
    for (const Variant<Kernel>& variant : variants) {
        if (variant.isa <= isa && runs(variant) && (!variant.faster || variant.faster())) return &variant;
    }
    return nullptr;
}

// The same of an operator that has a variant for every instruction set.
template <class Kernel>
Kernel best(Variants<Kernel> variants, Isa isa) {
    return best_variant(variants, isa)->kernel;
}
