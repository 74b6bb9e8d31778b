// What the library says of the contract it was built with.
#pragma once
#include <string>

namespace dynroute {

std::string describe_contract();  // JSON

}  // namespace dynroute
