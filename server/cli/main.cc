// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/commands.h"

int main(int argc, char** argv) { return nibble::cli::Main(argc, argv); }
