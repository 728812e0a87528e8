#include "steps.h"

#include <algorithm>
#include <thread>

namespace {

constexpr size_t kForms = 3;  // blocks of the same tokens, of which int4 takes all

// A sequence of the pool: the tokens of it that the cache holds, and the blocks for all it may ever hold, all of one
// form after all of another. written: tokens that were ever computed into these.
struct Growing {
    size_t s, past = 0, written = 0;
    std::vector<int32_t> blocks;

    size_t room() const { return blocks.size() / kForms; }  // blocks of tokens
};

// Its new tokens in a step: of the sequence, then drafts, which the sequence does not go on with.
struct Piece {
    Growing* of;
    size_t tokens, drafts;
};

// Exactly as large as the blocks of the sequences, full of what no operator wrote.
struct Cache {
    size_t block_count;
    Exact memory;
};

template <class T>
Exact copy_of(Random& random, const std::vector<T>& values) {
    Exact out = room<T>(random, values.size());
    if (!values.empty()) memcpy(out.at<T>(), values.data(), out.bytes());
    return out;
}

size_t blocks_of(size_t tokens) { return (tokens + kCacheBlock - 1) / kCacheBlock; }

// Gives each sequence its blocks, anywhere in one cache. spare: tokens of each beyond its own, for drafts.
Cache open(Random& random, const Model& model, std::vector<Growing>& all, size_t spare) {
    std::vector<int32_t> free;
    const auto tokens_of = [&](const Growing& each) {
        return std::min(model.pool.tokens(each.s) + spare, model.longest);
    };
    for (const Growing& each : all) {
        for (size_t i = kForms * blocks_of(tokens_of(each)); i > 0; --i) free.push_back(int32_t(free.size()));
    }
    for (size_t i = free.size(); i > 1; --i) std::swap(free[i - 1], free[random.between(0, i - 1)]);
    Cache cache{free.size(), Exact(random, free.size() * model.cache_bytes, 64)};
    for (Growing& each : all) {
        const auto begin = free.end() - ptrdiff_t(kForms * blocks_of(tokens_of(each)));
        each.blocks.assign(begin, free.end());
        free.erase(begin, free.end());
    }
    return cache;
}

// Rows of the output: of `outputs`, or of all tokens if the program has no Select.
std::vector<float> run_step(Random& random, const Model& model, Cache& cache, const std::vector<Piece>& pieces,
                            const std::vector<int32_t>& outputs, int threads) {
    constexpr int32_t kNoBlock = 0x7fffffff;  // far outside of every cache
    std::vector<int32_t> ids, past, tables;
    std::vector<int64_t> starts = {0};
    size_t stride = 0;
    for (const Piece& each : pieces) {
        const int32_t* begin = &model.pool.ids[size_t(model.pool.starts[each.of->s]) + each.of->past];
        ids.insert(ids.end(), begin, begin + each.tokens);
        for (size_t i = 0; i < each.drafts; ++i) ids.push_back(int32_t(random.between(0, model.vocabulary - 1)));
        past.push_back(int32_t(each.of->past));
        starts.push_back(int64_t(ids.size()));
        stride = std::max(stride, blocks_of(each.of->past + each.tokens + each.drafts));
    }
    for (size_t form = 0; form < kForms; ++form) {
        for (const Piece& each : pieces) {
            const size_t first = each.of->past / kCacheBlock,
                         needed = blocks_of(each.of->past + each.tokens + each.drafts);
            for (size_t i = 0; i < stride; ++i) {
                const bool read = i < needed && (form == 0 || !model.causal || is_hot(first, i));
                tables.push_back(read ? each.of->blocks[form * each.of->room() + i] : kNoBlock);
            }
        }
    }
    const Exact exact_ids = copy_of(random, ids), exact_past = copy_of(random, past),
                exact_starts = copy_of(random, starts), exact_tables = copy_of(random, tables),
                exact_outputs = copy_of(random, outputs);
    const size_t values = (model.per == Per::kOutput ? outputs.size() : ids.size()) * model.width;
    const Exact out = room<float>(random, values);
    std::vector<double> seconds(model.program->op_count());
    if (!model.program->run({.ids = exact_ids.at<int32_t>(),
                             .types = nullptr,
                             .starts = exact_starts.at<int64_t>(),
                             .sequences = pieces.size(),
                             .past = exact_past.at<int32_t>(),
                             .outputs = exact_outputs.at<int32_t>(),
                             .output_count = outputs.size(),
                             .cache = cache.memory.at<char>(),
                             .block_count = cache.block_count,
                             .tables = exact_tables.at<int32_t>(),
                             .table_stride = stride},
                            threads, out.at<float>(), random.one_in(8) ? seconds.data() : nullptr)) {
        fail("step", "out of memory");
    }
    return {out.at<float>(), out.at<float>(values)};
}

// One token, a few, or a part of what is left.
size_t random_tokens(Random& random, size_t left) {
    const size_t most = random.one_in(3) ? 1 : random.one_in(2) ? 80 : left;
    return random.between(1, std::min(most, left));
}

// New tokens of some of the sequences that are not complete; none if all are.
std::vector<Piece> next_step(Random& random, const Model& model, std::vector<Growing>& all) {
    std::vector<Growing*> unfinished;
    for (Growing& each : all) {
        if (each.past < model.pool.tokens(each.s)) unfinished.push_back(&each);
    }
    std::vector<Piece> pieces;
    for (Growing* each : unfinished) {
        const bool last = each == unfinished.back();
        if (random.one_in(3) && !(last && pieces.empty())) continue;
        const size_t left = model.pool.tokens(each->s) - each->past,
                     tokens = model.causal ? random_tokens(random, left) : left,
                     most = each->room() * kCacheBlock - each->past - tokens;
        const bool drafts = model.causal && random.one_in(4);
        const size_t wrong = std::min({model.longest - each->past - tokens, model.undone, random.between(1, 70)});
        pieces.push_back({each, tokens, drafts ? std::min(most, wrong) : 0});
    }
    return pieces;
}

// Forgets some of its last tokens; those before, too, down to the beginning of their block, where a convolution has not
// kept what computing goes on from.
void set_back(Random& random, const Model& model, Growing& one) {
    one.past -= random.between(0, std::min(one.past, size_t(70)));
    const size_t begin = one.past / kCacheBlock * kCacheBlock;
    if (std::min(one.written, begin + kCacheBlock) > one.past + model.undone) one.past = begin;
}

// Steps until all of these sequences are complete.
void grow(Random& random, const Model& model, Cache& cache, std::vector<Growing>& all, int most_threads) {
    for (;;) {
        const std::vector<Piece> pieces = next_step(random, model, all);
        if (pieces.empty()) return;
        std::vector<int32_t> outputs;
        std::vector<const float*> wanted;  // of each row that the step puts out, or null for that of a draft
        const bool few = random.one_in(2);
        int32_t token = 0;
        for (const Piece& each : pieces) {
            const float* row = &model.alone[each.of->s][each.of->past * model.width];
            for (size_t i = 0; i < each.tokens + each.drafts; ++i, ++token, row += model.width) {
                const bool put_out = !few || random.one_in(8);
                if (put_out) outputs.push_back(token);
                if (put_out || model.per == Per::kToken) wanted.push_back(i < each.tokens ? row : nullptr);
            }
        }
        const std::vector<float> got =
            run_step(random, model, cache, pieces, outputs, int(random.between(1, size_t(most_threads))));
        for (size_t i = 0; i < wanted.size(); ++i) {
            if (wanted[i] && memcmp(&got[i * model.width], wanted[i], model.width * sizeof(float))) {
                fail("step", "a result depends on how its sequence came, or on its company");
            }
        }
        for (const Piece& each : pieces) {
            each.of->written = std::max(each.of->written, each.of->past + each.tokens + each.drafts);
            each.of->past += each.tokens;
            if (model.causal && random.one_in(12)) set_back(random, model, *each.of);
        }
    }
}

}  // namespace

std::vector<float> in_one_step(Random& random, const Model& model, size_t s) {
    std::vector<Growing> all(1);
    all[0].s = s;
    Cache cache = open(random, model, all, 0);
    std::vector<int32_t> outputs(model.pool.tokens(s));
    for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = int32_t(i);
    return run_step(random, model, cache, {{&all[0], outputs.size(), 0}}, outputs, 1);
}

void check_steps(Random& random, const Model& model, const std::vector<size_t>& chosen, int most_threads, int callers) {
    std::vector<Growing> first;
    for (size_t s : chosen) first.push_back({.s = s, .past = 0, .written = 0, .blocks = {}});
    Cache cache = open(random, model, first, random.between(0, 70));
    if (callers == 1 || chosen.size() == 1 || random.one_in(2)) return grow(random, model, cache, first, most_threads);
    const size_t half = first.size() / 2;
    std::vector<Growing> second(first.begin() + ptrdiff_t(half), first.end());
    first.resize(half);
    std::thread other([&, seed = random.bits()] {
        Random dice{seed};
        grow(dice, model, cache, second, most_threads);
    });
    grow(random, model, cache, first, most_threads);
    other.join();
}
