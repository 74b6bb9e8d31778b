// Every operator's call on CUDA: name, number of results. A call is made by <name>_call(device, limits, the arguments
// of the operator's schema).
#pragma once
#include "chain_calls.h"
#include "gate_train_call.h"
#include "loss_call.h"
#include "node_train_call.h"
#include "op_calls.h"

#define DYNROUTE_CALLS(X)        \
  X(sepconv, 1)                  \
  X(transform, 1)                \
  X(gate, 1)                     \
  X(route, 8)                    \
  X(aggregate, 1)                \
  X(aggregate_backward, 4)       \
  X(sepconv_train, 3)            \
  X(sepconv_train_backward, 2)   \
  X(transform_train, 3)          \
  X(transform_train_backward, 2) \
  X(node_train, 7)               \
  X(node_train_backward, 3)      \
  X(gate_train, 4)               \
  X(gate_train_backward, 2)      \
  X(upsampled_cross_entropy, 2)
