// What random programs are built of: buffers, weights, and the operators around attention.
#pragma once
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "cpu.h"
#include "fill.h"
#include "model.h"

// Tokens of a sequence, values of a row, and outputs of a block's first linear, at most.
struct Sizes {
    size_t longest, width, inner;
};

class Builder {
public:
    Builder(Random& random, Isa isa, size_t number, Sizes most)
        : random(random), isa(isa), number(number), most(most) {}

    Random& random;
    const Isa isa;
    const size_t number;
    const Sizes most;
    std::unique_ptr<Model> model = std::make_unique<Model>();

    // The program, whose output is this buffer, with the buffers placed as Python places them.
    std::unique_ptr<Model> finish(int out);

    // group: of kGroups.
    int buffer(BufferKind kind, size_t width, Per per = Per::kToken, size_t group = 0);
    const Buffer& at(int index) const { return buffers_[index].buffer; }
    // touched: the buffers that it reads or writes; kNone is left out.
    void add(Op op, std::initializer_list<int> touched);

    template <class T>
    const T* keep(Exact values) {
        model->weights.push_back(std::move(values));
        return model->weights.back().at<T>();
    }

    Activation activation() { return random.one_in(2) ? Activation::kGelu : Activation::kNone; }
    Function function() { return Function(random.between(0, 5)); }
    // 1 to `most`, every second one a multiple of 8: groups have no other width.
    size_t random_width(size_t most);

    // Rows of words; padding: an id that takes no place, or kNone.
    int embed(size_t width, WordKind kind, size_t first_position, int64_t padding, size_t types);
    // The buffer itself where a linear reads it as it is; else codes, codes by group or bf16 of it.
    int operand(int x);
    // Columns [column, column + n) of out from x, which is codes or bf16.
    void linear(int x, int out, size_t column, size_t n, Activation activation);
    // q, k and v from x, as one linear or as three.
    int project(int x, size_t q_width, size_t kv_width);
    // The first heads of the rows turned by position.
    void rotate(int rows, size_t heads, size_t head_size);
    // The norm of x + residual; now and then also its codes, or the sum, which then is what later blocks add to.
    int norm(int x, int residual);
    // What the last norm quantized, if nothing has read it yet; else x.
    int newest(int x);
    int feed_forward(int x);
    // Back to the width of the stream, to which it is added.
    int output(int in, int x);

private:
    struct Placed {
        Buffer buffer;
        size_t first, last;  // operators between which it is alive
    };

    BufferKind operand_kind(size_t width);
    int operand_buffer(BufferKind kind, size_t width, Per per);
    InputGrid grid(size_t k, size_t pad, QuantizeMode mode);
    InputGrid grid_of(int out);
    size_t place();

    std::vector<Placed> buffers_;
    std::vector<Op> ops_;
    int codes_ = kNone;  // of the last norm
};

// A program without state: an encoder's blocks, then rows of tokens or a pooled head. number: consecutive ones vary
// what random choice would only vary now and then.
std::unique_ptr<Model> random_encoder(Random& random, Isa isa, size_t number);
// A program with state: a decoder's blocks, then rows of tokens or the head of those whose output is wanted.
std::unique_ptr<Model> random_decoder(Random& random, Isa isa, size_t number);
