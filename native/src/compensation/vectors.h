// Which vector of a codebook a few neighbouring columns should take.
#pragma once

#include <stdint.h>

#include "compensation/grid.h"

namespace inferos {

// How many of n columns with these codes are negative.
int count_negative(const int16_t * codes, int n);

// Sets the codes of the columns that one vector of the codebook stands for, with their signs.
//   wanted    (columns,) what the columns should be
//   scales    (columns,) of the vector's magnitudes
//   corner    (columns, width), upper triangular: what an error of one column does to those behind
//             it, as in inferos_feedback
//   others    how many of the columns that share this vector's signs are negative, so that an even
//             number of all is; -1: signs do not depend on each other
void choose_vector(const Codebook & book, const float * wanted, const float * scales,
                   const float * corner, int64_t width, int others, int16_t * codes);

}  // namespace inferos
