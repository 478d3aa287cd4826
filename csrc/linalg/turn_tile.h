// A tile of a matrix to where its transpose has it, along memory on both sides.
#pragma once

#include "linalg/tile_product.h"

namespace soap_fast {

// put(c, r, value of entry (r, c)) for r < rows, c < columns, both at most kTile, where get(r, c)
// gives the value: neighbours of a row are got together, and put together as neighbours of a
// column. `scratch` holds kTileElements.
template <typename T, typename Team, typename Get, typename Put>
SOAP_FAST_HOST_DEVICE void turn_tile(const Team& team, int rows, int columns, T* scratch,
                                     const Get& get, const Put& put) {
  constexpr int kOdd = kTile<T> + 1;  // neither rows nor columns meet in one bank
  for (int e = team.rank(); e < kTile<T> * kTile<T>; e += team.size()) {
    const int row = e / kTile<T>, column = e % kTile<T>;
    if (row < rows && column < columns) scratch[column * kOdd + row] = get(row, column);
  }
  team.sync();
  for (int e = team.rank(); e < kTile<T> * kTile<T>; e += team.size()) {
    const int column = e / kTile<T>, row = e % kTile<T>;
    if (row < rows && column < columns) put(column, row, scratch[column * kOdd + row]);
  }
  team.sync();
}

}  // namespace soap_fast
