"""The console's texts that pages share, in English and in Chinese; a page has its own beside it."""

from __future__ import annotations

from collections.abc import Mapping

Words = Mapping[str, tuple[str, str]]

SHARED: Words = {
    "console": ("Millstream", "Millstream"),
    "skip": ("Skip to the content", "跳到正文"),
    "navigation": ("Pages", "页面"),
    "theme": ("Light or dark", "浅色或深色"),
    "language": ("中文", "English"),
    "menu": ("Menu", "菜单"),
    "help": ("Keyboard shortcuts", "键盘快捷键"),
    "help_theme": ("light or dark", "切换浅色或深色"),
    "help_search": ("search in the log", "在日志中搜索"),
    "help_close": ("close", "关闭"),
    "leave": ("Sign out", "退出"),
    "enter.key": ("Key", "密钥"),
    "enter.button": ("Enter", "进入"),
    "enter.text": (
        "This installation asks for a key: one with the right *:view sees the pages, one with control moves traffic.",
        "此系统需要密钥：拥有 *:view 权限的密钥可以查看页面，拥有 control 权限的可以操作流量。",
    ),
    "why": ("Reason (it is recorded)", "原因（将被记录）"),
    "why_needed": ("Say why: the reason is recorded beside your name.", "请填写原因：它会与您的名字一起记录。"),
    "confirm": ("Confirm", "确认"),
    "cancel": ("Cancel", "取消"),
    "close": ("Close", "关闭"),
    "failed": ("This part failed; the console's log says why.", "此部分出错；原因见控制台日志。"),
    "none": ("None", "无"),
    "nothing": ("Nothing here yet.", "这里还没有内容。"),
    "model": ("Model", "模型"),
    "version": ("Version", "版本"),
    "live": ("live", "线上"),
    "canary": ("canary", "金丝雀"),
    "split": ("split", "分流"),
    "shadow": ("shadow", "影子"),
    "when": ("When", "时间"),
    "who": ("Who", "操作人"),
    "reason": ("Why", "原因"),
}
