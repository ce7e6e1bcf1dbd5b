// Begins the page.

import { begin as chat } from "./chat.js";
import { begin as status } from "./status.js";

chat();
status();
