// foca_kernels._planner: the header-only schemes of include/foca/schemes.h, for Python.
//
// It exists so that a test can hold the C++ tables equal to foca_dit.schemes; engines include the
// header itself. Torch-free.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "foca/schemes.h"

namespace py = pybind11;

namespace {

foca::FoCa make_foca(const std::string& reading, double feedback, double max_carry,
                     double first_slope) {
  using Reading = foca::FoCa::Reading;
  if (reading != "rolling" && reading != "anchored") {
    throw foca::detail::fault("FoCa", "reading", "'rolling' or 'anchored'", "'" + reading + "'");
  }
  const Reading chosen = reading == "rolling" ? Reading::kRolling : Reading::kAnchored;
  return foca::FoCa(chosen, feedback, max_carry, first_slope);
}

// transition and weights, as nested lists.
template <typename Scheme>
void bind_tables(py::class_<Scheme>& bound) {
  bound.def_property_readonly("history_size", &Scheme::history_size)
      .def(
          "transition",
          [](const Scheme& scheme, const foca::Times& tau, const foca::Steps& anchors) {
            const foca::Table flat = scheme.transition(tau, anchors);
            const std::size_t columns = scheme.history_size() + 1;
            std::vector<foca::Table> rows;
            for (std::size_t p = 0; p < scheme.history_size(); ++p) {
              rows.emplace_back(flat.begin() + p * columns, flat.begin() + (p + 1) * columns);
            }
            return rows;
          },
          py::arg("tau"), py::arg("anchors"), "The transition, K rows of K + 1 columns.")
      .def("weights", &Scheme::weights, py::arg("tau"), py::arg("anchors"), py::arg("step"),
           "The weights, K numbers.");
}

}  // namespace

PYBIND11_MODULE(_planner, m) {
  m.doc() = "Scheme tables and the interval schedule of the C++ header foca/schemes.h";

  py::class_<foca::FoCa> bound_foca(m, "FoCa");
  bound_foca.def(py::init(&make_foca), py::arg("reading") = "rolling", py::arg("feedback") = 0.5,
                 py::arg("max_carry") = 1.0, py::arg("first_slope") = 1.0);
  bind_tables(bound_foca);

  py::class_<foca::TaylorSeer> bound_taylor(m, "TaylorSeer");
  bound_taylor.def(py::init<int, bool, std::int64_t>(), py::arg("order") = 1,
                   py::arg("official") = false, py::arg("warmup") = 3);
  bind_tables(bound_taylor);

  py::class_<foca::Interval>(m, "Interval")
      .def(py::init([](std::int64_t interval, std::int64_t warmup, py::object tail) {
             if (tail.is_none()) return foca::Interval(interval, warmup);
             const auto first = tail.cast<std::int64_t>();
             if (first < 0) {  // in C++ it stands for no tail
               throw foca::detail::fault("Interval", "tail", "an integer >= 0",
                                         std::to_string(first));
             }
             return foca::Interval(interval, warmup, first);
           }),
           py::arg("interval"), py::arg("warmup") = 3, py::arg("tail") = py::none())
      .def("next_full", &foca::Interval::next_full, py::arg("anchors"))
      .def("full_steps", &foca::Interval::full_steps, py::arg("num_steps"));
}
