//! Windows in an address space, and the devices behind them.
