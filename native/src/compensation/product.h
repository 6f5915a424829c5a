// Products of small matrices that are added to a third one, in the widest vectors of this CPU. Each
// element is a sum in the order of k, so that a result does not depend on how the rows and columns
// were shared among threads.
#pragma once

#include <stdint.h>

namespace inferos {

// c += sign * a b. A matrix is its first element and the distances between its rows and columns.
template <typename T> struct Product {
    const T * a;  // (m, k)
    int64_t   a_row, a_column;
    const T * b;  // (k, n)
    int64_t   b_row, b_column;
    T *       c;  // (m, n), its columns one after the other
    int64_t   c_row;
    int64_t   m, n, k;
    T         sign;
};

void add_product(const Product<float> & product);
void add_product(const Product<double> & product);

}  // namespace inferos
