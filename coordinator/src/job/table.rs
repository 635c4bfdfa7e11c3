//! One event, the whole list of commands.
