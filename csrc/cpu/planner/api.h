// What the Python module of planner and trace links against.
#pragma once
#define DYNROUTE_API __attribute__((visibility("default")))
